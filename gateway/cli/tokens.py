"""`sprawl tokens`: who else may come in, how far, and for how long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from gateway.cli.client import Client
from gateway.cli.connection import HOME_DEFAULT, Connection
from gateway.cli.display import print_facts, print_json, print_table, show_time
from gateway.cli.durations import parse_duration_ms, show_duration
from gateway.cli.failures import Unusable
from gateway.cli.options import connection_options, home_option, json_option
from gateway.cli.secret_file import check_new, keep_secret, out_option


@click.group()
def tokens() -> None:
    """Create, list and revoke access tokens."""


def _ttl(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else parse_duration_ms(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@tokens.command()
@click.argument("name")
@click.option("--role", "roles", multiple=True, required=True, metavar="ROLE", help="A role that the token has; may be repeated.")
@click.option("--scope", "scopes", multiple=True, metavar="ACTIONS:TOPIC[:KEY]",
              help="Narrow it: publish:orders* or publish,read:orders:eu/*; may be repeated.")  # fmt: skip
@click.option("--ttl", "ttl_ms", callback=_ttl, metavar="TIME", help="How long it lives, as in 12h or 30d; for ever otherwise.")
@out_option("token")
@json_option
@connection_options
def create(
    connection: Connection,
    name: str,
    roles: tuple[str, ...],
    scopes: tuple[str, ...],
    ttl_ms: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Create a token called NAME. Its secret is shown once and kept nowhere.

    \b
    sprawl tokens create lift-7 --role publisher --scope 'publish:lifts:7/*' --ttl 30d --out lift-7.token
    """
    check_new(out)
    document: dict[str, Any] = {"name": name, "roles": list(roles)}
    if scopes:
        document["scopes"] = list(scopes)
    if ttl_ms is not None:
        document["ttl_ms"] = ttl_ms
    with Client(connection) as client:
        made = client.call("POST", "/v1/tokens", document=document)
    if out is not None:
        _keep(out, made)
    if as_json:
        print_json(made)
        return
    print_facts(_facts(made), err=True)
    if out is not None:
        click.echo(f"The token is in {out}, readable by you alone: use it with --token-file {out}", err=True)
        return
    click.echo("This is the token. It is shown once and kept nowhere:", err=True)
    click.echo(made["token"])


@tokens.command("list")
@json_option
@connection_options
def list_tokens(connection: Connection, as_json: bool) -> None:
    """List tokens: who, how far, how long. Never their secrets."""
    with Client(connection) as client:
        found = client.call("GET", "/v1/tokens")["tokens"]
    if as_json:
        for token in found:
            print_json(token)
        return
    now_ms = _now_ms()
    rows = [
        (t["id"], t["name"], ", ".join(t["roles"]), _show_scopes(t), show_time(t["created_at_ms"]), _state(t, now_ms))
        for t in found
    ]
    print_table(("id", "name", "roles", "scopes", "created", "state"), rows)


@tokens.command()
@click.argument("token_id", metavar="ID")
@json_option
@connection_options
def revoke(connection: Connection, token_id: str, as_json: bool) -> None:
    """Revoke the token with this ID, for good. Connections that it opened end within a second."""
    with Client(connection) as client:
        client.call("DELETE", f"/v1/tokens/{quote(token_id, safe='')}")
    if as_json:
        print_json({"revoked": token_id})
    else:
        click.echo(f"revoked {token_id}")


@tokens.command()
@home_option
@click.option("--ttl", "ttl_ms", callback=_ttl, default="1h", show_default=True, metavar="TIME", help="How long it lives.")
@out_option("token")
@json_option
def recover(home: Path | None, ttl_ms: int, out: Path | None, as_json: bool) -> None:
    """Make an admin token without having one, on the node's own machine.

    Whoever may write the node's token file may do so anyway; this does it right, and puts a line into the audit trail. A running
    node takes the token within a second, a stopped one when it starts.

    \b
    sprawl tokens recover --out admin.token
    sprawl tokens create admin --role admin --token-file admin.token --out admin-2.token
    """
    check_new(out)
    made = _recovered(home or HOME_DEFAULT, ttl_ms)
    if out is not None:
        _keep(out, made)
    if as_json:
        print_json(made)
        return
    print_facts(_facts(made), err=True)
    click.echo(f"The token is in {out}" if out is not None else made["token"], err=out is not None)


def _recovered(home: Path, ttl_ms: int) -> dict[str, Any]:
    """The new token and its facts, durable and audited."""
    import os

    import msgspec

    from gateway.cli.serve import load_config
    from gateway.observe.audit import AuditLog
    from security.errors import SecurityError
    from security.identity.tokens import TokenStore

    node = load_config(home, None, ()).node
    if not Path(node.tokens).exists():
        raise Unusable(f"there is no node in {home} yet", what_to_do=f"start one with `sprawl serve --home {home}`")
    audit = AuditLog(Path(node.audit), _now_ms, lines_max=1)
    try:
        store = TokenStore(Path(node.tokens), _now_ms, os.urandom)
        text, record = store.create("recovered admin", ("admin",), None, ttl_ms)
        audit.record(
            "tokens", None, "create", f"token {record.id}", "allowed", f"recovered by user {os.getuid()} of this machine"
        )
    except (SecurityError, OSError) as problem:
        raise Unusable("no token was made", str(problem)) from None
    finally:
        audit.close()
    return {**msgspec.to_builtins(record), "token": text}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _keep(out: Path, made: dict[str, Any]) -> None:
    advice = f"revoke it with `sprawl tokens revoke {made['id']}` and create another"
    keep_secret(out, f"{made.pop('token')}\n", "the token was made", advice)


def _facts(token: dict[str, Any]) -> dict[str, Any]:
    ends = token.get("expires_at_ms")
    return {
        "id": token["id"],
        "name": token["name"],
        "roles": ", ".join(token["roles"]),
        "scopes": _show_scopes(token),
        "expires": "never" if ends is None else show_time(ends),
    }


def _show_scopes(token: dict[str, Any]) -> str:
    scopes = token.get("scopes")
    return "not narrowed" if scopes is None else ", ".join(scopes)


def _state(token: dict[str, Any], now_ms: int) -> str:
    if token.get("revoked_at_ms") is not None:
        return "revoked"
    ends = token.get("expires_at_ms")
    if ends is None:
        return "valid"
    return "expired" if ends <= now_ms else f"valid for {show_duration(ends - now_ms)}"
