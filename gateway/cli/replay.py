"""`sprawl replay`: a stretch of the log again, at its original speed or any other, to the terminal, a file or another topic."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from broker.delivery.replay import SPEED_MAX, SPEED_MIN, TIMES_MAX, Pace
from gateway.cli.client import RETRIES_DEFAULT, Client, Retry
from gateway.cli.connection import Connection
from gateway.cli.display import print_json, show_time
from gateway.cli.durations import parse_duration_ms
from gateway.cli.failures import Failure, Interrupted, printable
from gateway.cli.options import FILE, connection_options, json_option
from gateway.cli.positions import FORMS
from gateway.cli.replay_targets import NdjsonFile, OtherTopic, Target, Terminal
from gateway.cli.replay_window import Begin, Replayed, Until, Where, WindowReader, parse_begin, parse_until
from gateway.cli.selection import filter_options, parse_selection

# As many as one request publishes; and so a stop repeats or loses no more than that at full speed.
GROUP_RECORDS_MAX = 500
PROGRESS_S = 0.2

T = TypeVar("T")


@click.command()
@click.argument("address")
@click.option("--from", "begin", default="beginning", show_default=True, metavar="POSITION",
              help=f"Where the window begins: {FORMS}, or id:MESSAGE-ID.")  # fmt: skip
@click.option("--until", "until", metavar="POSITION",
              help="Where it ends, without that record: a time, offset:N, id:ID or cursor:C. [default: the end now]")  # fmt: skip
@click.option("--key", help="The key, instead of the part of ADDRESS after the slash.")
@filter_options
@click.option("--partition", type=click.IntRange(0), default=0, show_default=True, help="The partition that offset:N speaks of.")
@click.option("--count", type=click.IntRange(1), help="Stop after so many records of the window.")
@click.option("--speed", default="max", show_default=True, metavar="SPEED",
              help="max: as fast as possible; original; or a factor of it such as 10x or 0.5x.")  # fmt: skip
@click.option("--pause-max", metavar="DURATION", help="Cut pauses between records to this, as in 5s.")
@click.option("--times", type=click.IntRange(1, TIMES_MAX), default=1, show_default=True, help="Replay the window so often.")
@click.option("--to", "topic", metavar="TOPIC", help="Publish the records to this topic.")
@click.option("--file", type=FILE, help="Write them to this file, a record object a line (NDJSON).")
@click.option("--append", is_flag=True, help="Add to a file that exists.")
@click.option("--new-ids", is_flag=True, help="With --to: give every record a new message id.")
@click.option("--new-times", is_flag=True, help="With --to: give every record the time it is replayed at.")
@json_option
@connection_options
def replay(
    connection: Connection,
    address: str,
    begin: str,
    until: str | None,
    key: str | None,
    key_prefix: str | None,
    headers: tuple[str, ...],
    partition: int,
    count: int | None,
    speed: str,
    pause_max: str | None,
    times: int,
    topic: str | None,
    file: Path | None,
    append: bool,
    new_ids: bool,
    new_times: bool,
    as_json: bool,
) -> None:
    """Replay a window of the log: to the terminal, into a file, or into another topic.

    ADDRESS is topic or topic/key, or a filter with wildcards. The window is fixed when the replay begins: what is published
    meanwhile is not part of it. Ctrl-C ends the replay and says where to go on.

    \b
    sprawl replay orders --from "1 hour ago" --speed 10x
    sprawl replay 'orders/eu/+' --from 2026-11-23T13:00:00Z --until 2026-11-23T14:00:00Z --file eu.ndjson
    sprawl replay orders --from offset:100 --until offset:200 --to orders-test --times 3
    sprawl publish orders-test --envelope --file eu.ndjson
    """
    _check(topic, file, append=append, only_topic=new_ids or new_times)
    now_ms = time.time_ns() // 1_000_000
    first = _parsed("--from", lambda: parse_begin(begin, now_ms))
    last = Until() if until is None else _parsed("--until", lambda: parse_until(until, now_ms, partition))
    pace = Tempo(_parsed("--speed", lambda: parse_speed(speed)), _parsed("--pause-max", lambda: _pause_ms(pause_max)))
    selection = parse_selection(address, key, key_prefix, headers)
    with Client(connection) as client:
        retry = Retry(RETRIES_DEFAULT)
        reader = WindowReader(client, retry, selection, partition=partition, notice=_notice)
        target: Target = Terminal(as_json=as_json)
        if file is not None:
            target = NdjsonFile(file, append=append)
        elif topic is not None:
            target = OtherTopic(client, topic, retry, new_ids=new_ids, new_times=new_times)
        shown = not as_json and sys.stderr.isatty() and not isinstance(target, Terminal)
        try:
            with _progress(shown=shown) as advance:
                run = Replay(reader, target, pace, advance, count)
                run.play(first, last, times)
        finally:
            target.close()
    _print_totals(run, as_json=as_json, to_terminal=isinstance(target, Terminal))


@dataclass(frozen=True, slots=True)
class Tempo:
    """`speed` None: as fast as possible."""

    speed: float | None
    pause_ms_max: int | None

    def pace(self) -> Pace:
        return Pace(self.speed, self.pause_ms_max)


class Replay:
    """One call of the verb. `cursor` is after the last record that has arrived at the target, "" before the first."""

    def __init__(
        self,
        reader: WindowReader,
        target: Target,
        tempo: Tempo,
        advance: Callable[[Replay], None],
        count: int | None = None,
        *,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reader, self._target, self._tempo, self._advance, self._count = reader, target, tempo, advance, count
        self._now_s, self._sleep = now_s, sleep
        self.records = self.size_bytes = self.passes = 0
        self.times = 1
        self.cursor = ""
        self.timestamp_ms = 0
        self.began_s = now_s()
        self.seconds = 0.0

    @property
    def end_cursor(self) -> str:
        return self._reader.end_cursor

    def play(self, begin: Begin, until: Until, times: int) -> None:
        """Failures name how far it came. Raises Interrupted for Ctrl-C."""
        self.times = times
        try:
            where = self._reader.open(begin, until)
            for _ in range(times):
                self.cursor = ""
                self._play_once(where, until)
                self.passes += 1
        except KeyboardInterrupt:
            raise Interrupted("interrupted", self.so_far(), self.go_on()) from None
        except Failure as failure:
            if self.cursor:
                failure.detail += f" ({self.so_far()}; {self.go_on()})"
            raise
        finally:
            self.seconds = self._now_s() - self.began_s

    def so_far(self) -> str:
        where = f" in pass {self.passes + 1} of {self.times}" if self.times > 1 else ""
        return f"{self.records} records were replayed{where}; a group under way may have arrived as well"

    def go_on(self) -> str:
        if not self.cursor:
            return "nothing of this pass had arrived: begin it again" if self.records else ""
        more = f", and then {self.times - self.passes - 1} passes of the whole window" if self.times - self.passes > 1 else ""
        return f"go on with --from cursor:{self.cursor} --until cursor:{self.end_cursor} or the --until it had{more}"

    def _play_once(self, where: Where, until: Until) -> None:
        pace, began_s, group, left = self._tempo.pace(), self._now_s(), list[Replayed](), self._count
        for page in self._reader.pages(where, until):
            for record in page if left is None else page[:left]:
                wait_s = began_s + pace.due_ms(record.meta.timestamp) / 1_000 - self._now_s()
                if wait_s > 0:
                    self._write(group)
                    self._sleep(wait_s)
                group.append(record)
                if len(group) >= GROUP_RECORDS_MAX:
                    self._write(group)
            self._write(group)
            if left is not None and (left := left - len(page)) <= 0:
                return

    def _write(self, group: list[Replayed]) -> None:
        if group:
            self._target.write(group)
            self.records += len(group)
            self.size_bytes += sum(len(text) for text, _ in group)
            self.cursor, self.timestamp_ms = group[-1].meta.cursor, group[-1].meta.timestamp
            group.clear()
            self._advance(self)


def parse_speed(text: str) -> float | None:
    """None for max. Raises ValueError."""
    lowered = text.strip().lower()
    if lowered == "max":
        return None
    try:
        speed = 1.0 if lowered == "original" else float(lowered.removesuffix("x"))
    except ValueError:
        raise ValueError(f"{text!r} is no speed: use max, original, or a factor such as 10x or 0.5x") from None
    if not SPEED_MIN <= speed <= SPEED_MAX:
        raise ValueError(f"{text!r} is no usable speed: a factor is from {SPEED_MIN} to {SPEED_MAX:.0f}")
    return speed


def _pause_ms(text: str | None) -> int | None:
    return None if text is None else parse_duration_ms(text)


def _parsed(flag: str, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=flag) from None


def _check(topic: str | None, file: Path | None, *, append: bool, only_topic: bool) -> None:
    if topic is not None and file is not None:
        raise click.UsageError("records go to one place: give --to or --file")
    if append and file is None:
        raise click.UsageError("--append needs --file")
    if only_topic and topic is None:
        raise click.UsageError("--new-ids and --new-times need --to: a file and the terminal show records as they are")


@contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[Replay], None]]:
    """A line on stderr: how many, how fast, and how far in the log's own time."""
    if not shown:
        yield lambda run: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), refresh_per_second=1 / PROGRESS_S, transient=True) as live:
        yield lambda run: live.update(Text(_line(run)))


def _line(run: Replay) -> str:
    seconds = max(time.monotonic() - run.began_s, 1e-6)
    passes = f"  pass {run.passes + 1} of {run.times}" if run.times > 1 else ""
    return f"{run.records:,} records  {run.records / seconds:,.0f}/s  at {show_time(run.timestamp_ms)}{passes}"


def _print_totals(run: Replay, *, as_json: bool, to_terminal: bool) -> None:
    """After records on stdout, they would be in the way there: JSON is for programs, who have counted them."""
    if as_json:
        if not to_terminal:
            totals = {"records": run.records, "bytes": run.size_bytes, "passes": run.passes}
            print_json({**totals, "seconds": round(run.seconds, 3), "end_cursor": run.end_cursor})
        return
    passes = f" in {run.passes} passes" if run.passes > 1 else ""
    rate = run.records / max(run.seconds, 1e-6)
    click.echo(f"{run.records:,} records{passes} in {run.seconds:.1f} s: {rate:,.0f} records/s", err=to_terminal)


def _notice(line: str) -> None:
    click.echo(f"sprawl: {printable(line)}", err=True)
