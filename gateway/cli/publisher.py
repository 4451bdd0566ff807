"""Sends records in batches over one connection, in order: the next batch leaves when the one before is acknowledged."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gateway.cli.client import Client, Retry
from gateway.cli.failures import Failure
from gateway.cli.inputs import Line

# 500 records of 200 B make a request of ~150 KB: the request's own cost is spread thin, and one answer is soon there.
BATCH_RECORDS_MAX = 500
BATCH_BYTES_MAX = 4 * 1024 * 1024

# A line from a pipe waits at most this long for company.
LINGER_S = 0.1
QUEUE_LINES_MAX = 2 * BATCH_RECORDS_MAX


@dataclass(slots=True)
class Totals:
    """Acknowledged so far. `body_bytes` counts request bodies; `resent` counts requests that were sent again."""

    records: int = 0
    body_bytes: int = 0
    requests: int = 0
    resent: int = 0
    last_line: int = 0


@dataclass(slots=True)
class Batch:
    """What goes out in one request."""

    lines: list[Line] = field(default_factory=list)
    size: int = 0

    def takes(self, line: Line) -> bool:
        """Any first line, whatever its size: the node says what is too large."""
        return not self.lines or (len(self.lines) < BATCH_RECORDS_MAX and self.size + len(line.record) < BATCH_BYTES_MAX)

    def add(self, line: Line) -> None:
        self.lines.append(line)
        self.size += len(line.record) + 1

    def body(self) -> bytes:
        return b"\n".join(line.record for line in self.lines)


class Publisher:
    def __init__(self, client: Client, topic: str, acks: str, retry: Retry) -> None:
        self._client, self._topic, self._acks, self._retry = client, topic, acks, retry
        self.totals = Totals()

    def so_far(self) -> str:
        return f"acknowledged before: {self.totals.records} records, to line {self.totals.last_line}"

    def send(self, batch: Batch) -> list[dict[str, Any]]:
        """Receipts of one atomic append. A failure names how much had been acknowledged before it."""
        body = batch.body()
        try:
            receipts = self._retry.run(
                lambda: self._client.publish(self._topic, body, self._acks), reached=self.totals.requests > 0
            )
        except Failure as failure:
            if self.totals.records:
                failure.detail += f" ({self.so_far()})"
            raise
        self.totals.records += len(batch.lines)
        self.totals.body_bytes += len(body)
        self.totals.requests += 1
        self.totals.resent = self._retry.resent
        self.totals.last_line = batch.lines[-1].number
        return receipts


def batches(lines: Iterable[Line]) -> Iterator[Batch]:
    """Full batches, the last one as it is."""
    batch = Batch()
    for line in lines:
        if not batch.takes(line):
            yield batch
            batch = Batch()
        batch.add(line)
    if batch.lines:
        yield batch


def lingering_batches(lines: Iterable[Line]) -> Iterator[Batch]:
    """The same for a source that may pause: what is there leaves after LINGER_S at the latest.

    The source is read in a thread, through a bounded queue: a fast one waits for the node, not in memory.
    """
    waiting: queue.Queue[Waiting] = queue.Queue(QUEUE_LINES_MAX)
    threading.Thread(target=_read_into, args=(lines, waiting), name="publish-input", daemon=True).start()
    item = waiting.get()
    while isinstance(item, Line):
        batch, until = Batch(), time.monotonic() + LINGER_S
        while isinstance(item, Line) and batch.takes(item):
            batch.add(item)
            item = _get_until(waiting, until)
        yield batch
        if item is Mark.PAUSE:
            item = waiting.get()
    if isinstance(item, BaseException):
        raise item


class Mark(Enum):
    END = "the source has ended"
    PAUSE = "nothing came in time"


Waiting = Line | BaseException | Mark


def _get_until(waiting: queue.Queue[Waiting], until: float) -> Waiting:
    try:
        return waiting.get(timeout=max(0.0, until - time.monotonic()))
    except queue.Empty:
        return Mark.PAUSE


def _read_into(lines: Iterable[Line], waiting: queue.Queue[Waiting]) -> None:
    try:
        for line in lines:
            waiting.put(line)
    except BaseException as error:  # handed to the thread that sends, which raises it
        waiting.put(error)
    else:
        waiting.put(Mark.END)
