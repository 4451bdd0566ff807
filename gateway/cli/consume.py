"""`sprawl consume`: records of a durable consumer, each acknowledged when it was shown, or by what a command makes of it."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from typing import Any

import click
import msgspec

from gateway.cli.connection import Connection
from gateway.cli.consumption import Consumption
from gateway.cli.display import json_line
from gateway.cli.durations import parse_duration_ms
from gateway.cli.failures import Unusable
from gateway.cli.options import connection_options, json_option
from gateway.cli.positions import FORMS, Position, parse_position
from gateway.cli.selection import filter_options, parse_selection
from gateway.cli.subscribe import show_record

SHOWN_AHEAD = 100
REJECTING_EXIT_CODE = 65  # EX_DATAERR of sysexits.h: the input was wrong, and will be the next time
REASON_CHARACTERS_MAX = 256


def _position(context: click.Context, parameter: click.Parameter, text: str) -> Position:
    try:
        return parse_position(text, time.time_ns() // 1_000_000)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _seconds(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else parse_duration_ms(text) / 1_000
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("address")
@click.option("--as", "name", required=True, metavar="NAME", help="The consumer's name; the node keeps how far it is.")
@click.option("--from", "position", callback=_position, default="latest", show_default=True, metavar="POSITION",
              help=f"Where a new consumer starts: {FORMS}.")  # fmt: skip
@filter_options
@click.option("--partition", type=click.IntRange(0), default=0, show_default=True, help="The partition that offset:N speaks of.")
@click.option("--exec", "command", metavar="COMMAND", help="Run this for each record, its value on standard input.")
@click.option("--deliveries", type=click.IntRange(1, 1000), help="Deliveries of a record before it is a dead letter.")
@click.option("--ack-timeout", callback=_seconds, metavar="TIME", help="How long one record may take, as in 30s.")
@click.option("--count", type=click.IntRange(1), help="Stop after so many deliveries.")
@click.option("--idle", callback=_seconds, metavar="TIME", help="Stop when nothing came for so long, as in 2s.")
@json_option
@connection_options
def consume(
    connection: Connection,
    address: str,
    name: str,
    position: Position,
    key_prefix: str | None,
    headers: tuple[str, ...],
    partition: int,
    command: str | None,
    deliveries: int | None,
    ack_timeout: float | None,
    count: int | None,
    idle: float | None,
    as_json: bool,
) -> None:
    """Consume records of an address as a named, durable consumer, and acknowledge them.

    A record is acknowledged when it was shown; with --exec, when COMMAND ended with 0. When it ended with 65, the record goes to
    the dead-letter topic at once, with anything else it is delivered again later. RECORD_TOPIC, RECORD_PARTITION, RECORD_OFFSET,
    RECORD_KEY, RECORD_ID and RECORD_ATTEMPT are in its environment.

    \b
    sprawl consume orders --as billing --from beginning
    sprawl consume orders/eu/# --as mailer --exec ./send-mail --deliveries 5
    """
    selection = parse_selection(address, None, key_prefix, headers)
    options = {"deliveries_max": deliveries, "ack_timeout_ms": None if ack_timeout is None else int(ack_timeout * 1_000)}
    feed = Consumption(
        connection,
        selection,
        name,
        position,
        {option: value for option, value in options.items() if value is not None},
        partition=partition,
        ahead=SHOWN_AHEAD if command is None else 1,
        count=count,
        idle_s=idle,
        notice=lambda text: click.echo(text, err=True),
    )
    arguments = None if command is None else _arguments(command)
    try:
        _work(feed, arguments, count, as_json)
    except KeyboardInterrupt:
        return


def _work(feed: Consumption, arguments: list[str] | None, count: int | None, as_json: bool) -> None:
    done = 0
    for page in feed:
        for text in page.records:
            record = msgspec.json.decode(text)
            click.echo(json_line(text.decode()) if as_json else show_record(record))
            op, members = ("ack", {}) if arguments is None else _run(arguments, record)
            feed.settle(record["tag"], op, **members)
            done += 1
            if done == count:
                feed.finish()
                return


def _arguments(command: str) -> list[str]:
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--exec") from None
    if not arguments:
        raise click.BadParameter("it is empty", param_hint="--exec")
    return arguments


def _run(arguments: list[str], record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What becomes of the record: an operation, and its members. No shell: what others published is never part of a command."""
    environment = os.environ | {f"RECORD_{name}": value for name, value in _facts(record).items()}
    try:
        code = subprocess.run(arguments, input=_value(record), env=environment, check=False).returncode  # noqa: S603
    except OSError as error:
        raise Unusable(f"{arguments[0]} cannot be run", str(error.strerror), "give a command that exists by --exec") from None
    if code == 0:
        return "ack", {}
    reason = f"{os.path.basename(arguments[0])} ended with {code}"[:REASON_CHARACTERS_MAX]
    return ("reject" if code == REJECTING_EXIT_CODE else "nack"), {"reason": reason}


def _facts(record: dict[str, Any]) -> dict[str, str]:
    facts = {
        "TOPIC": record["topic"],
        "PARTITION": str(record["partition"]),
        "OFFSET": str(record["offset"]),
        "ATTEMPT": str(record["attempt"]),
        "KEY": record.get("key") or "",
        "ID": record.get("id") or "",
    }
    return {name: value for name, value in facts.items() if "\x00" not in value}  # no environment holds it


def _value(record: dict[str, Any]) -> bytes:
    if "value64" in record:
        return msgspec.convert(record["value64"], bytes)
    if "text" in record:
        return str(record["text"]).encode()
    return b"" if record.get("value") is None else msgspec.json.encode(record["value"])
