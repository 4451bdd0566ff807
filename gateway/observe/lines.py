"""Lines of text to a file, off the event loop: one thread, one bounded queue, one write for all that waits.

The log and the audit trail differ in what happens at the bound. Log lines are dropped and counted: a slow terminal must not stop
a node. Audit lines are never dropped: who adds one waits a moment for the disk, then is refused (fail closed).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

# Lines gather this long before they are written: waking the thread for each would cost the event loop more than the line does.
GATHER_S = 0.02
# Before a failed write of lines that must not be lost is tried again.
RETRY_S = 0.5
# What a caller may wait at the bound, on the event loop: longer than any healthy disk, shorter than a client's patience.
ROOM_WAIT_S = 1.0
# At close, for a disk that has stopped answering.
CLOSE_WAIT_S = 5.0


class LinesFull(Exception):
    """The queue is at its bound and the disk does not take any: `lines_max` lines wait."""

    def __init__(self, lines_max: int) -> None:
        self.lines_max = lines_max
        super().__init__(f"{lines_max} lines wait for the disk; free it, or raise the bound")


class Sink(Protocol):
    """Where lines end. Called on the writer's own thread only."""

    def write(self, data: bytes) -> None:
        """All of it, or `OSError`."""

    def close(self) -> None: ...


class LineWriter:
    """Takes lines from any thread, until it is closed; then the sink is closed too."""

    def __init__(self, sink: Sink, *, name: str, lines_max: int, lossy: bool) -> None:
        self.dropped_lines = 0
        self.failure: str | None = None
        """Why the last write failed; None when it did not."""
        self._sink = sink
        self._lines_max = lines_max
        self._lossy = lossy
        self._waiting: list[bytes] = []
        self._writing = 0
        self._asleep = False
        self._hurry = 0
        self._closing = False
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        # A daemon: a disk that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Add one line, without its newline. Raises `LinesFull` at the bound where nothing may be lost."""
        with self._lock:
            if (self._closing or len(self._waiting) + self._writing >= self._lines_max) and not self._await_room():
                self.dropped_lines += 1
                return
            self._waiting.append(line)
            if self._asleep:
                self._changed.notify_all()

    def flush(self) -> bool:
        """Wait until all lines so far are written; False when the disk does not take them in time."""
        with self._changed, self._hurrying():
            return self._changed.wait_for(self._idle, CLOSE_WAIT_S)

    def close(self) -> bool:
        """Write what waits and end the thread; False when lines were left."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(CLOSE_WAIT_S)
        return self._idle()

    def _full(self) -> bool:
        return self._closing or len(self._waiting) + self._writing >= self._lines_max

    def _await_room(self) -> bool:
        """False: lose the line."""
        if self._lossy:
            return False
        with self._hurrying():
            if self._closing or not self._changed.wait_for(lambda: not self._full(), ROOM_WAIT_S):
                raise LinesFull(self._lines_max)
        return True

    @contextmanager
    def _hurrying(self) -> Iterator[None]:
        """Somebody waits: write without gathering."""
        self._hurry += 1
        self._changed.notify_all()
        try:
            yield
        finally:
            self._hurry -= 1

    def _idle(self) -> bool:
        return not self._waiting and not self._writing

    def _run(self) -> None:
        try:
            self._write_all()
        finally:
            self._sink.close()

    def _write_all(self) -> None:
        while lines := self._take():
            data = b"\n".join(lines) + b"\n"
            while not self._written(data, len(lines)):
                with self._changed:
                    if self._changed.wait_for(lambda: self._closing, RETRY_S):
                        return

    def _take(self) -> list[bytes]:
        """Everything that waits; nothing only at the end."""
        with self._changed:
            self._asleep = True
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._asleep = False
            self._changed.wait_for(lambda: self._hurry or self._closing, GATHER_S)
            lines, self._waiting = self._waiting, []
            self._writing = len(lines)
            return lines

    def _written(self, data: bytes, count: int) -> bool:
        """Whether these lines are done with: written, or given up where that is allowed."""
        try:
            self._sink.write(data)
            failure = None
        except OSError as error:
            failure = error.strerror or type(error).__name__
        with self._changed:
            self.failure = failure
            if failure is not None and not self._lossy:
                return False
            self.dropped_lines += count if failure else 0
            self._writing = 0
            self._changed.notify_all()
            return True
