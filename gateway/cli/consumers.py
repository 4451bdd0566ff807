"""`sprawl consumers`: who reads with acknowledgements, how far they are, and sending them elsewhere."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import click

from gateway.cli.client import Client
from gateway.cli.connection import Connection
from gateway.cli.display import print_facts, print_json, print_table, show_time
from gateway.cli.options import connection_options, json_option
from gateway.cli.positions import FORMS, Position, parse_position

owner_option = click.option("--owner", metavar="PRINCIPAL", help="Whose consumer it is, for administrators. [default: you]")


@click.group()
def consumers() -> None:
    """List, show, delete, seek and give away durable consumers."""


@consumers.command("list")
@click.option("--all", "everybody", is_flag=True, help="Everybody's, for administrators.")
@json_option
@connection_options
def list_consumers(connection: Connection, everybody: bool, as_json: bool) -> None:
    """List your consumers: what they read, how far they are, what is open."""
    with Client(connection) as client:
        found = _list(client, everybody)
    if as_json:
        for consumer in found:
            print_json(consumer)
    elif not found:
        click.echo("no consumers yet: the first connection that consumes makes one")
    else:
        rows = [
            (one["name"], one["owner"], one["filter"]["address"], _show_lag(one), one["pending"], one["position"], _state(one))
            for one in found
        ]
        columns = ("consumer", "owner", "reads", "lag", "pending", "position", "state")
        print_table(columns, rows, right=("lag", "pending"))


@consumers.command()
@click.argument("name")
@owner_option
@json_option
@connection_options
def show(connection: Connection, name: str, owner: str | None, as_json: bool) -> None:
    """Show the consumer called NAME."""
    with Client(connection) as client:
        consumer = client.call("GET", _path(name), query=_query(owner))
    _print(consumer, as_json)


@consumers.command()
@click.argument("name")
@owner_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@connection_options
def delete(connection: Connection, name: str, owner: str | None, yes: bool, as_json: bool) -> None:
    """Forget the consumer called NAME and its position. The records stay in the log."""
    if not yes and not click.confirm(f"Forget the consumer {name} and how far it got?", err=True):
        raise click.UsageError("not deleted")
    with Client(connection) as client:
        client.call("DELETE", _path(name), query=_query(owner))
    if as_json:
        print_json({"deleted": name})
    else:
        click.echo(f"deleted {name}")


def _position(context: click.Context, parameter: click.Parameter, text: str) -> Position:
    try:
        return parse_position(text, time.time_ns() // 1_000_000)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@consumers.command()
@click.argument("name")
@click.option("--to", "position", callback=_position, required=True, metavar="POSITION", help=f"Where to: {FORMS}.")
@click.option("--partition", type=click.IntRange(0), default=0, show_default=True, help="The partition that offset:N speaks of.")
@owner_option
@json_option
@connection_options
def seek(connection: Connection, name: str, position: Position, partition: int, owner: str | None, as_json: bool) -> None:
    """Send the consumer called NAME to another place, in use or not. What was open is forgotten.

    \b
    sprawl consumers seek billing --to beginning
    sprawl consumers seek billing --to "10 minutes ago"
    """
    query = position.as_query() | _query(owner)
    if position.kind == "offset":
        query["partition"] = str(partition)
    with Client(connection) as client:
        consumer = client.call("POST", f"{_path(name)}/seek", query=query)
    _print(consumer, as_json)


@consumers.command()
@click.argument("name")
@click.option("--to", "heir", required=True, metavar="PRINCIPAL", help="Who has it from now on: token:ID for a token.")
@owner_option
@json_option
@connection_options
def give(connection: Connection, name: str, heir: str, owner: str | None, as_json: bool) -> None:
    """Give the consumer called NAME to another principal, with its position: to a new token, for instance."""
    with Client(connection) as client:
        client.call("POST", f"{_path(name)}/give", query=_query(owner), document={"to": heir})
    if as_json:
        print_json({"given": name, "to": heir})
    else:
        click.echo(f"{name} is now {heir}'s")


def _list(client: Client, everybody: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.call("GET", "/v1/consumers", query={"all": "true"} if everybody else None)["consumers"]
    return found


def _print(consumer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(consumer)
        return
    options = consumer["options"]
    print_facts(
        {
            "consumer": consumer["name"],
            "owner": consumer["owner"],
            "reads": _show_filter(consumer["filter"]),
            "state": _state(consumer),
            "position": consumer["position"],
            "next": consumer["next"],
            "pending": f"{consumer['pending']}, of which {consumer['in_flight']} in flight",
            "lag": _show_lag(consumer),
            "retries": (
                f"{options['deliveries_max']} deliveries, {options['ack_timeout_ms']} ms each, "
                f"pauses from {options['retry_backoff_ms']} to {options['retry_backoff_max_ms']} ms"
            ),
            "in flight": f"at most {options['in_flight_max']}",
            "dead letters": options["dead_letter_topic"] or "where the topic says",
            "created": show_time(consumer["created_at_ms"]),
            "changed": show_time(consumer["changed_at_ms"]),
        }
    )


def _show_filter(reads: dict[str, Any]) -> str:
    prefix = reads.get("key_prefix", reads.get("key_prefix64"))
    headers = [f"{name}={value}" for name, value in reads.get("headers", {}).items()]
    return ", ".join([reads["address"], *([] if prefix is None else [f"keys from {prefix}"]), *headers])


def _show_lag(consumer: dict[str, Any]) -> str:
    lag = consumer["lag_records"]
    return "unknown" if lag is None else str(lag)


def _state(consumer: dict[str, Any]) -> str:
    return "in use" if consumer["connected"] else "idle"


def _query(owner: str | None) -> dict[str, str]:
    return {} if owner is None else {"owner": owner}


def _path(name: str) -> str:
    return f"/v1/consumers/{quote(name, safe='')}"
