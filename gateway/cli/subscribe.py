"""`sprawl subscribe`: the records of an address, followed over WebSocket, or read once to their end over REST."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from gateway.cli.client import Client
from gateway.cli.connection import Connection
from gateway.cli.display import json_line, show_time
from gateway.cli.failures import printable
from gateway.cli.feed import Feed, Gone, Lost, Page
from gateway.cli.options import connection_options, json_option
from gateway.cli.positions import FORMS, Position, parse_position
from gateway.cli.selection import Selection, filter_options, parse_selection

PAGE_RECORDS = 1_000


class Answer(msgspec.Struct):
    """What a read of a topic returns. It may be empty before the end: records that this key or reader has no part in."""

    records: list[msgspec.Raw]
    next_cursor: str
    at_end: bool
    damage: list[Lost] = []
    gaps: list[Gone] = []


def _position(context: click.Context, parameter: click.Parameter, text: str | None) -> Position | None:
    try:
        return None if text is None else parse_position(text, time.time_ns() // 1_000_000)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("address")
@click.option("--from", "position", callback=_position, metavar="POSITION",
              help=f"Where to start: {FORMS}. [default: latest; beginning with --no-follow]")  # fmt: skip
@click.option("--key", help="The key, instead of the part of ADDRESS after the slash.")
@filter_options
@click.option("--partition", type=click.IntRange(0), default=0, show_default=True, help="The partition that offset:N speaks of.")
@click.option("--count", type=click.IntRange(1), help="Stop after so many records.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Wait for more, or stop at the end.")
@json_option
@connection_options
def subscribe(
    connection: Connection,
    address: str,
    position: Position | None,
    key: str | None,
    key_prefix: str | None,
    headers: tuple[str, ...],
    partition: int,
    count: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Show the records of an address as they arrive.

    ADDRESS is topic or topic/key, or a filter with MQTT's wildcards: + is one level, # that level and all below. A lost
    connection is made again, and goes on where it stopped. Ctrl-C ends it.

    \b
    sprawl subscribe orders --from beginning
    sprawl subscribe orders/eu/7 --from "10 minutes ago" --json
    sprawl subscribe 'orders/eu/+' --header type=paid
    sprawl subscribe '+/status'
    """
    selection = parse_selection(address, key, key_prefix, headers)
    position = position or Position("latest" if follow else "earliest")
    if follow:
        feed = Feed(connection, "", None, position, partition=partition, notice=_notice, selection=selection)
        pages: Iterator[Page] = iter(feed)
    else:
        pages = _read_to_end(connection, selection, position, partition)
    try:
        _show(pages, count, as_json)
    except KeyboardInterrupt:
        return


def _show(pages: Iterator[Page], count: int | None, as_json: bool) -> None:
    shown = 0
    for page in pages:
        records = page.records if count is None else page.records[: count - shown]
        lines = [json_line(record.decode()) if as_json else show_record(msgspec.json.decode(record)) for record in records]
        if lines:
            click.echo("\n".join(lines))
        shown += len(records)
        if shown == count:
            return


def _read_to_end(connection: Connection, selection: Selection, position: Position, partition: int) -> Iterator[Page]:
    """Pages over REST, to the end as it is when it is reached."""
    where = position.as_query()
    if position.kind == "offset":
        where["partition"] = str(partition)
    wanted = {"limit": str(PAGE_RECORDS), "wait_ms": "0", **selection.query()}
    with Client(connection) as client:
        while True:
            answer = client.call("GET", selection.path(), query=wanted | where, kind=Answer)
            for lost in (*answer.damage, *answer.gaps):
                _notice(str(lost))
            yield Page([bytes(record) for record in answer.records], answer.next_cursor)
            if answer.at_end:
                return
            where = {"cursor": answer.next_cursor}


def show_record(record: dict[str, Any]) -> str:
    """One line: when, where, key, value. What others published is shown with its control characters escaped."""
    place = f"{record['topic']}/{record['partition']} @ {record['offset']}"
    parts = [click.style(f"{show_time(record['timestamp'])}  {printable(place)}", dim=True)]
    if (key := _show_key(record)) is not None:
        parts.append(click.style(printable(key), fg="cyan"))
    return "  ".join([*parts, printable(_show_value(record))])


def _show_key(record: dict[str, Any]) -> str | None:
    return f"base64:{record['key64']}" if "key64" in record else record.get("key")


def _show_value(record: dict[str, Any]) -> str:
    if "text" in record:
        return str(record["text"])
    if "value64" in record:
        return f"base64:{record['value64']}"
    return "(no value)" if record.get("value") is None else msgspec.json.encode(record["value"]).decode()


def _notice(line: str) -> None:
    click.echo(f"sprawl: {printable(line)}", err=True)
