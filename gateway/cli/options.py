"""The flags that verbs share, so that each means the same everywhere. A token is never a flag: process arguments are public."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.cli.connection import Connection, resolve_connection
from gateway.cli.failures import JSON_MODE

Verb = TypeVar("Verb", bound=Callable[..., Any])

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


def json_option(verb: Verb) -> Verb:
    """`as_json: bool`; failures read it too."""
    return click.option(
        "--json", "as_json", is_flag=True, is_eager=True, callback=_remember, help="Print JSON, one object a line, errors too."
    )(verb)


def home_option(verb: Verb) -> Verb:
    return click.option(
        "--home", type=FOLDER, envvar="SPRAWL_HOME", show_envvar=True, help="The node's home folder. [default: .sprawl]"
    )(verb)


def connection_options(verb: Verb) -> Verb:
    """`connection: Connection`, resolved when the verb runs: `--help` touches no file."""
    flags = (
        click.option("--url", envvar="SPRAWL_URL", show_envvar=True, help="The node, https://host:port."),
        click.option("--ca", type=FILE, envvar="SPRAWL_CA", show_envvar=True, help="File of the CA certificate to trust."),
        click.option("--token-file", type=FILE, help="File that holds the token; SPRAWL_TOKEN holds the token itself."),
        click.option("--client-cert", type=FILE, help="Client certificate to show, PEM."),
        click.option("--client-key", type=FILE, help="Its key, PEM; left out when the certificate's file holds it."),
        home_option,
    )

    @wraps(verb)
    def wrapped(**values: Any) -> Any:
        values["connection"] = _connection(values)
        return verb(**values)

    for flag in reversed(flags):
        flag(wrapped)
    return wrapped  # type: ignore[return-value]


def _connection(values: dict[str, Any]) -> Connection:
    if values["client_key"] is not None and values["client_cert"] is None:
        raise click.UsageError("--client-key needs --client-cert")
    names = ("url", "ca", "token_file", "client_cert", "client_key", "home")
    return resolve_connection(*(values.pop(name) for name in names))


def _remember(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    context.meta[JSON_MODE] = value
    return value
