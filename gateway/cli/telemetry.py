"""Readings of this machine on their way: published over REST, shown as they come back over WebSocket."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec
import uuid_utils

from gateway.cli.client import Client, Retry
from gateway.cli.display import json_line, show_size
from gateway.cli.failures import Failure, printable
from gateway.cli.feed import Feed
from gateway.cli.positions import Position
from gateway.cli.readings import Machine

if TYPE_CHECKING:
    from rich.table import Table

TOPIC = "machine"
INTERVAL_S = 0.25
ARRIVAL_TIMEOUT_S = 15.0


class Arrival(NamedTuple):
    """A record as it came, and how long after its reading."""

    record: dict[str, Any]
    after_ms: int


class Telemetry:
    """One run. Its own records are told from others' in the topic by their message ids."""

    def __init__(self, client: Client, *, as_json: bool) -> None:
        self._client, self._as_json = client, as_json
        self._changed = threading.Condition()
        self._published: set[str] = set()
        self._arrived: dict[str, int] = {}
        self._latest: dict[str, Arrival] = {}
        self._failure: Failure | None = None

    @property
    def missing(self) -> set[str]:
        """Acknowledged, and not arrived."""
        return self._published - self._arrived.keys()

    def run(self, seconds: float) -> None:
        here = self._client.call("GET", f"/v1/topics/{TOPIC}/records", query={"offset": "latest", "limit": "1", "wait_ms": "0"})
        feed = Feed(self._client.connection, TOPIC, None, Position("cursor", cursor=here["next_cursor"]), notice=_notice)
        reader = threading.Thread(target=self._read, args=(feed,), name="demo-subscription", daemon=True)
        reader.start()
        try:
            with self._screen() as refresh:
                self._publish(seconds, refresh)
                self._await_arrivals()
                refresh()
        finally:
            feed.close()
            reader.join(ARRIVAL_TIMEOUT_S)
        if self._failure is not None:
            raise self._failure

    def facts(self) -> dict[str, Any]:
        delays = sorted(self._arrived[one] for one in self._published & self._arrived.keys())
        return {
            "published": len(self._published),
            "arrived": len(delays),
            "arrival_ms_median": statistics.median(delays) if delays else None,
            "arrival_ms_max": delays[-1] if delays else None,
        }

    def show(self) -> None:
        facts = self.facts()
        click.echo(
            f"{facts['published']} readings were published over REST and {facts['arrived']} of them arrived over WebSocket; "
            f"from reading to arrival {facts['arrival_ms_median']:.0f} ms in the median, {facts['arrival_ms_max']} ms at most."
        )

    def _publish(self, seconds: float, refresh: Callable[[], None]) -> None:
        machine, retry = Machine(), Retry()
        next_s = time.monotonic()
        end_s = next_s + seconds
        while (next_s := next_s + INTERVAL_S) <= end_s + INTERVAL_S and self._failure is None:
            body = b"\n".join(_lines(machine))
            receipts = retry.run(lambda body=body: self._client.publish(TOPIC, body, "durable"), reached=True)  # type: ignore[misc]
            with self._changed:
                self._published.update(receipt["id"] for receipt in receipts)
            refresh()
            time.sleep(max(0.0, next_s - time.monotonic()))

    def _await_arrivals(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self.missing or self._failure is not None, ARRIVAL_TIMEOUT_S)

    def _read(self, feed: Feed) -> None:
        try:
            for page in feed:
                self._take(page.records)
        except Failure as failure:  # raised again by run, in the thread that was called
            with self._changed:
                self._failure = failure
                self._changed.notify_all()

    def _take(self, records: list[bytes]) -> None:
        now_ms = time.time_ns() // 1_000_000
        with self._changed:
            for text in records:
                record = msgspec.json.decode(text)
                after_ms = now_ms - record["timestamp"]
                self._arrived[record["id"]] = after_ms
                self._latest[record.get("key") or ""] = Arrival(record, after_ms)
            self._changed.notify_all()
        if self._as_json:
            click.echo("\n".join(json_line(text.decode()) for text in records))

    @contextmanager
    def _screen(self) -> Iterator[Callable[[], None]]:
        """A table that changes in place; without a terminal, the table as it is at the end. JSON is printed as it arrives."""
        from rich.console import Console

        console = Console(markup=False)
        if self._as_json or not console.is_terminal:
            yield lambda: None
            if not self._as_json:
                console.print(self._table())
            return
        from rich.live import Live

        with Live(self._table(), console=console, auto_refresh=False) as live:
            yield lambda: live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False, title="arriving over WebSocket", title_justify="left", title_style="bold")
        for name in ("address", "reading", "offset", "after ms"):
            table.add_column(name, justify="right" if name in ("offset", "after ms") else "left", min_width=8)
        with self._changed:
            for key, (record, after_ms) in sorted(self._latest.items()):
                cells = (f"{TOPIC}/{key}", _show_reading(record.get("value")), record["offset"], after_ms)
                table.add_row(*(Text(printable(str(cell))) for cell in cells))
        return table


def _lines(machine: Machine) -> Iterator[bytes]:
    now_ms = time.time_ns() // 1_000_000
    for key, value in machine.read():
        yield msgspec.json.encode({"id": str(uuid_utils.uuid7()), "key": key, "timestamp": now_ms, "value": value})


def _show_reading(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "  ".join(_show_number(name, number) for name, number in value.items())


def _show_number(name: str, number: Any) -> str:
    what, bytes_, per_s = name.partition("_bytes")
    if not isinstance(number, int | float) or not bytes_:
        return f"{number} %" if name == "percent" else f"{name} {number}"
    return f"{what} {show_size(number)}{'/s' if per_s else ''}"


def _notice(line: str) -> None:
    click.echo(f"sprawl: {printable(line)}", err=True)
