"""`sprawl publish`: arguments, lines of stdin, or a file go out as records."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.addresses import parse_address
from gateway.cli.client import RETRIES_DEFAULT, Client, Retry
from gateway.cli.connection import Connection
from gateway.cli.display import print_json, show_size
from gateway.cli.durations import parse_duration_ms
from gateway.cli.failures import Interrupted, printable
from gateway.cli.inputs import Shape, ValueKind, argument_bytes, file_lines, stdin_values, value_lines
from gateway.cli.options import FILE, connection_options, json_option
from gateway.cli.publisher import Batch, Publisher, Totals, batches, lingering_batches

if TYPE_CHECKING:
    from rich.progress import Progress

HEADERS_MAX = 100


@click.command()
@click.argument("address")
@click.argument("values", nargs=-1, metavar="[VALUE]...")
@click.option("--file", type=FILE, help="Publish a file: .ndjson (a JSON value a line) or .csv (an object a row).")
@click.option("--key", help="The key, instead of the part of ADDRESS after the slash.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Add a header to every record; may be repeated.")
@click.option("--acks", type=click.Choice(["durable", "none"]), default="durable", show_default=True, help="What to wait for.")
@click.option("--as", "kind", type=click.Choice(["auto", "json", "text"]), default="auto", show_default=True,
              help="How values are stored; auto: what parses as a JSON object or array as JSON, else text.")  # fmt: skip
@click.option("--key-column", metavar="NAME", help="Take each record's key from this column or JSON member.")
@click.option("--timestamp-column", metavar="NAME", help="Take each record's time from it: Unix milliseconds or RFC 3339.")
@click.option("--numbers", is_flag=True, help="CSV: store cells that are numbers as JSON numbers, digit for digit.")
@click.option("--envelope", is_flag=True, help="Lines are whole records, as `subscribe --json` prints them.")
@click.option("--ttl", metavar="DURATION", help="Nobody is given the records so long after they were taken, as in 30s or 7d.")
@click.option("--retries", type=click.IntRange(0, 100), default=RETRIES_DEFAULT, show_default=True,
              help="How often a request is sent again after 503 or a lost connection, with the same message ids.")  # fmt: skip
@json_option
@connection_options
def publish(
    connection: Connection,
    address: str,
    values: tuple[str, ...],
    file: Path | None,
    key: str | None,
    headers: tuple[str, ...],
    acks: str,
    kind: ValueKind,
    key_column: str | None,
    timestamp_column: str | None,
    numbers: bool,
    envelope: bool,
    ttl: str | None,
    retries: int,
    as_json: bool,
) -> None:
    """Publish records to an address.

    ADDRESS is topic or topic/key.

    \b
    sprawl publish orders/eu/7 '{"amount": 12}'
    tail -f access.log | sprawl publish logs -
    sprawl publish flights --file flights.csv --key-column carrier --timestamp-column time_hour
    """
    topic, address_key = parse_address(address, key)
    _check_sources(values, file, address_key, key_column)
    ttl_ms = None if ttl is None else _parse_ttl(ttl)
    shape = Shape(address_key, _parse_headers(headers), kind, key_column, timestamp_column, numbers, envelope, ttl_ms)
    with Client(connection) as client:
        publisher = Publisher(client, topic, acks, Retry(retries))
        try:
            if file is not None:
                _publish_file(publisher, file, shape, as_json)
            elif values == ("-",):
                _publish_stdin(publisher, shape, as_json)
            else:
                _publish_arguments(publisher, values, shape, as_json)
        except KeyboardInterrupt:
            raise Interrupted("interrupted", f"{publisher.so_far()}; a request under way may be stored as well") from None


def _publish_arguments(publisher: Publisher, values: tuple[str, ...], shape: Shape, as_json: bool) -> None:
    for batch in batches(value_lines(map(argument_bytes, values), shape)):
        for receipt in publisher.send(batch):
            _print_receipt(receipt, as_json)


def _publish_stdin(publisher: Publisher, shape: Shape, as_json: bool) -> None:
    started = time.monotonic()
    for batch in lingering_batches(value_lines(stdin_values(sys.stdin.buffer), shape)):
        publisher.send(batch)
    _print_totals(publisher.totals, time.monotonic() - started, as_json)


def _publish_file(publisher: Publisher, path: Path, shape: Shape, as_json: bool) -> None:
    started = time.monotonic()
    with _progress(path, shown=sys.stderr.isatty() and not as_json) as advance:
        for batch in batches(file_lines(path, shape)):
            publisher.send(batch)
            advance(batch, publisher.totals)
    _print_totals(publisher.totals, time.monotonic() - started, as_json)


class _Advance:
    def __init__(self, progress: Progress | None, size_bytes: int) -> None:
        self._progress = progress
        self._started = time.monotonic()
        if progress is not None:
            self._task = progress.add_task("", total=size_bytes, rate="")

    def __call__(self, batch: Batch, totals: Totals) -> None:
        if self._progress is not None:
            rate = _show_rate(totals, time.monotonic() - self._started)
            self._progress.update(self._task, completed=batch.lines[-1].end, rate=rate)


@contextmanager
def _progress(path: Path, *, shown: bool) -> Iterator[_Advance]:
    if not shown or not path.is_file():
        yield _Advance(None, 0)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}", markup=False), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Advance(progress, path.stat().st_size)


def _print_receipt(receipt: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(receipt)
        return
    place = f"{receipt['topic']}/{receipt['partition']}"
    if "offset" in receipt:
        place += f" @ {receipt['offset']}"
    click.echo(f"{printable(place)}  {click.style(printable(receipt['id']), dim=True)}")


def _print_totals(totals: Totals, seconds: float, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "records": totals.records,
                "body_bytes": totals.body_bytes,
                "requests": totals.requests,
                "resent_requests": totals.resent,
                "seconds": round(seconds, 3),
            }
        )
        return
    resent = f", {totals.resent} requests sent again (same message ids)" if totals.resent else ""
    click.echo(f"{totals.records:,} records in {seconds:.1f} s: {_show_rate(totals, seconds)}{resent}")


def _show_rate(totals: Totals, seconds: float) -> str:
    seconds = max(seconds, 1e-6)
    return f"{totals.records / seconds:,.0f} records/s, {show_size(totals.body_bytes / seconds)}/s"


def _check_sources(values: tuple[str, ...], file: Path | None, key: str | None, key_column: str | None) -> None:
    if bool(values) == (file is not None):
        raise click.UsageError("give values, or - for stdin, or --file: one of them")
    if "-" in values and len(values) > 1:
        raise click.UsageError("- reads stdin and stands alone")
    if key is not None and key_column is not None:
        raise click.UsageError("the address names a key already; leave it out where --key-column gives each record its own")


def _parse_ttl(text: str) -> int:
    try:
        return parse_duration_ms(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--ttl") from None


def _parse_headers(pairs: tuple[str, ...]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals or name in headers or len(headers) == HEADERS_MAX:
            raise click.BadParameter(f"{pair!r}: write NAME=VALUE, each name once, at most {HEADERS_MAX}", param_hint="--header")
        headers[name] = value
    return headers
