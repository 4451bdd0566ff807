"""A document that several processes change, as one of them knows it: read into memory, read again when it has changed.

A file that is damaged, open to others, or gone after it was there is an error, never "nobody": the node goes on with what it
knows for `stale_ms_max`, because a bad moment of a disk should not stop a fleet, and then refuses everybody, because by then
somebody may have been revoked.

**Off the event loop:** the constructor, `reload_if_changed` and every change block on the disk and the lock.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import msgspec

from security.identity.document_file import DocumentFile, Stamp, StoreDamaged

STALE_MS_MAX = 60_000  # as long as decisions may use an old policy while its store is away

Body = TypeVar("Body", bound=msgspec.Struct)
Index = TypeVar("Index")


class State(Generic[Body, Index]):
    """What one version of the file said. Replaced whole, so readers on other threads see one version or the other."""

    __slots__ = ("body", "index", "stamp")

    def __init__(self, stamp: Stamp | None, body: Body, index: Index) -> None:
        self.stamp, self.body, self.index = stamp, body, index


class SharedStore(Generic[Body, Index]):
    """`clock_ms` is Unix time. A missing file is a new store when it is opened, and damage once it has been seen."""

    def __init__(self, file: DocumentFile[Body], clock_ms: Callable[[], int], stale_ms_max: int = STALE_MS_MAX) -> None:
        self.stale_ms_max = stale_ms_max
        self.epoch = 1  # grows with every change of content: live connections are then judged again
        self._clock_ms = clock_ms
        self._changes = threading.Lock()
        self._file = file
        self._damage: str | None = None
        self._damaged_since_ms = 0
        self._state = self._indexed(None, file.empty)
        self._state = self._load()

    @abstractmethod
    def _index(self, body: Body) -> Index:
        """What look-ups need of a body."""

    def reload_if_changed(self) -> bool:
        """Take what another process changed; whether anything did. Raises `StoreDamaged`, see the module's text."""
        with self._changes:
            try:
                if self._damage is None and self._file.stamp() == self._state.stamp:
                    return False
                state = self._load()
            except StoreDamaged as damage:
                if self._damage is None:
                    self._damaged_since_ms = self._clock_ms()
                self._damage = damage.reason
                raise
            return self._take(state)

    def _refuse_when_stale(self) -> None:
        if self._damage is not None and abs(self._clock_ms() - self._damaged_since_ms) >= self.stale_ms_max:
            raise self._file.damaged(self._file.path, self._damage)

    @contextmanager
    def _changing(self) -> Iterator[State[Body, Index]]:
        """The newest state, with every other writer, thread or process, kept out."""
        with self._changes, self._file.locked():
            self._take(self._load())
            yield self._state

    def _write(self, body: Body) -> None:
        self._file.write(body)
        self._take(self._indexed(self._file.stamp(), body))

    def _load(self) -> State[Body, Index]:
        stamp = self._file.stamp()  # before reading, so that a change in between is seen as one the next time
        body = self._file.read()
        if body is None and self._state.stamp is not None:
            raise self._file.damaged(self._file.path, "it was there and is gone")
        return self._indexed(stamp, body or self._file.empty)

    def _indexed(self, stamp: Stamp | None, body: Body) -> State[Body, Index]:
        return State(stamp, body, self._index(body))

    def _take(self, state: State[Body, Index]) -> bool:
        changed = state.body != self._state.body
        self._damage = None
        self._state = state
        if changed:
            self.epoch += 1
        return changed
