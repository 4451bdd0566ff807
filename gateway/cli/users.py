"""`sprawl users`: who logs in with a name and a password (SCRAM, for clients of the Kafka protocol)."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from gateway.cli.client import Client
from gateway.cli.connection import Connection
from gateway.cli.display import print_facts, print_json, print_table, show_time
from gateway.cli.failures import Unusable
from gateway.cli.options import FILE, connection_options, json_option
from gateway.cli.secret_file import check_new, keep_secret, out_option

PASSWORD_BYTES = 18
PASSWORD_FILE_BYTES_MAX = 4_096


@click.group()
def users() -> None:
    """List, add and delete users with passwords, and change their passwords."""


password_file_option = click.option(
    "--password-file", type=FILE, help="The password is the first line of this file, instead of one that is made and shown once."
)


@users.command()
@click.argument("name")
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="A role that the user has; may be repeated.")
@password_file_option
@out_option("made password")
@json_option
@connection_options
def add(
    connection: Connection, name: str, roles: tuple[str, ...], password_file: Path | None, out: Path | None, as_json: bool
) -> None:
    """Add a user called NAME. The password is made here, shown once, and kept nowhere.

    \b
    sprawl users add alice --role publisher
    sprawl users add etl --role subscriber --out etl.password
    """
    password = _password(password_file, out)
    with Client(connection) as client:
        made = client.call("POST", "/v1/users", document={"name": name, "roles": list(roles), "password": password})
    _tell(made, password, password_file, out, as_json)


@users.command("password")
@click.argument("name")
@password_file_option
@out_option("made password")
@json_option
@connection_options
def set_password(connection: Connection, name: str, password_file: Path | None, out: Path | None, as_json: bool) -> None:
    """Give the user NAME another password. Connections that the old one opened end within a second."""
    password = _password(password_file, out)
    with Client(connection) as client:
        client.call("PUT", f"/v1/users/{quote(name, safe='')}/password", document={"password": password})
    _tell({"name": name}, password, password_file, out, as_json)


@users.command("list")
@json_option
@connection_options
def list_users(connection: Connection, as_json: bool) -> None:
    """List users: their roles, and how they can log in."""
    with Client(connection) as client:
        found = client.call("GET", "/v1/users")["users"]
    if as_json:
        for user in found:
            print_json(user)
        return
    rows = [
        (user["name"], ", ".join(user["roles"]), ", ".join(user["mechanisms"]), show_time(user["created_at_ms"]))
        for user in found
    ]
    print_table(("name", "roles", "logs in by", "created"), rows)


@users.command()
@click.argument("name")
@json_option
@connection_options
def delete(connection: Connection, name: str, as_json: bool) -> None:
    """Delete the user NAME. Its connections end within a second."""
    with Client(connection) as client:
        client.call("DELETE", f"/v1/users/{quote(name, safe='')}")
    if as_json:
        print_json({"deleted": name})
    else:
        click.echo(f"deleted {name}")


def _password(given: Path | None, out: Path | None) -> str:
    """Never an argument: those are seen by every process of the machine."""
    if given is None:
        import secrets

        check_new(out)
        return secrets.token_urlsafe(PASSWORD_BYTES)
    if out is not None:
        raise Unusable("--out is for a password that is made here", what_to_do="leave out --out, or --password-file")
    try:
        with given.open("rb") as file:
            lines = file.read(PASSWORD_FILE_BYTES_MAX).decode().splitlines()
    except OSError as error:
        raise Unusable(f"the password file {given} cannot be read", str(error.strerror)) from None
    except UnicodeDecodeError:
        raise Unusable(f"the password file {given} is not UTF-8") from None
    if not lines or not lines[0]:
        raise Unusable(f"the first line of {given} is empty", what_to_do="write the password there")
    return lines[0]


def _tell(user: dict[str, Any], password: str, given: Path | None, out: Path | None, as_json: bool) -> None:
    if out is not None:
        advice = f"make another with `sprawl users password {user['name']}`"
        keep_secret(out, f"{password}\n", "the password holds", advice)
    if as_json:
        print_json(user if given is not None or out is not None else {**user, "password": password})
        return
    if "roles" in user:
        print_facts({"name": user["name"], "roles": ", ".join(user["roles"]) or "none"}, err=True)
    if out is not None:
        click.echo(f"The password is in {out}, readable by you alone", err=True)
    elif given is None:
        click.echo("This is the password. It is shown once and kept nowhere:", err=True)
        click.echo(password)
    else:
        click.echo(f"{user['name']} logs in with the password of {given}", err=True)
