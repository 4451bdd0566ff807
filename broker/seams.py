"""The broker's seams to the world: time, randomness, disk, keyed store, threads.

Nothing in the broker calls the system clock, the system's randomness, `os` or a thread directly: it asks one of these. So the
same engine runs on a real machine (`broker/machine.py`) and in the seeded simulator, where power may fail at any call.

The owner thread is the thread of the event loop that runs the engine. `Executor.run` is the only way off it: work passed to it
may touch `Disk` and `KeyedStore`, never the engine's own state.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Result = TypeVar("Result")
Buffer = bytes | bytearray | memoryview


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall clock, milliseconds since the Unix epoch; may jump."""

    def monotonic_ms(self) -> int:
        """Never goes back; for waits and rates."""


class Random(Protocol):
    def bytes(self, count: int) -> bytes:
        """`count` bytes fit for keys."""


class File(Protocol):
    """One open file. Positions and sizes in bytes. Errors are `OSError`."""

    def write_at(self, position: int, buffers: Sequence[Buffer]) -> int:
        """Write all buffers contiguously from `position`, whole or raise; returns the bytes written."""

    def read_at(self, position: int, size: int) -> bytes:
        """Up to `size` bytes; shorter only at the end of the file."""

    def read_now(self, position: int, into: memoryview) -> int:
        """Bytes read of what is in memory already, for the owner thread: it never waits for the media and never raises. 0 also
        where the system cannot tell."""

    def size(self) -> int: ...

    def truncate(self, size: int) -> None: ...

    def allocate(self, size: int) -> None:
        """Blocks for the first `size` bytes, so that nobody else has them; what they hold does not matter."""

    def sync(self) -> None:
        """fdatasync: data and the size needed to read it are on the media when this returns."""

    def close(self) -> None: ...


class Disk(Protocol):
    """A folder tree. Paths are relative to the data folder and use `/`.

    A created, renamed or removed name is durable only after `sync_folder` of the folder that holds it.
    """

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing; `create` makes the file and refuses one that exists (`FileExistsError`)."""

    def list(self, folder: str) -> list[str]:
        """Names in a folder, sorted."""

    def exists(self, path: str) -> bool: ...

    def make_folder(self, folder: str) -> None: ...

    def rename(self, source: str, target: str) -> None:
        """Atomic; replaces the target."""

    def remove(self, path: str) -> None: ...

    def sync_folder(self, folder: str) -> None: ...

    def free_bytes(self) -> int: ...

    def lock(self, path: str, holder: str) -> Callable[[], None]:
        """Take the folder's lock for this process, storing `holder` for the next one's refusal; returns the release.

        Raises `broker.errors.FolderInUse` naming the holder.
        """


class KeyedStore(Protocol):
    """A small ordered map. Writes are atomic, ordered, and durable only after `flush`."""

    def get(self, key: bytes) -> bytes | None: ...

    def items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """In key order."""

    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        """One atomic write; after a power cut it is there whole or not at all, and never without those before it."""

    def flush(self) -> None:
        """All writes so far are on the media when this returns."""

    def close(self) -> None: ...


class KeyedStores(Protocol):
    """Opens the keyed store of a data folder."""

    def open(self, folder: str) -> KeyedStore:
        """Raises `broker.errors.StorageDamaged` when it cannot be opened whole."""

    def destroy(self, folder: str) -> None:
        """Remove it, so that it can be rebuilt."""


class Executor(Protocol):
    """Where blocking work runs. A lane runs its work one at a time, in order; lanes run beside each other.

    Lanes: `commit` (journal writes and syncs), `read` (several workers), `background` (merge, snapshots), `manifest` (lists of
    files, key store), `space` (the reserve).
    """

    def run(self, lane: str, work: Callable[[], Result]) -> Awaitable[Result]:
        """Run `work` off the owner thread; the result or the exception arrives on the owner thread."""

    def close(self) -> None: ...


class Seams(Protocol):
    """All of them, as one argument."""

    @property
    def clock(self) -> Clock: ...

    @property
    def random(self) -> Random: ...

    @property
    def disk(self) -> Disk: ...

    @property
    def stores(self) -> KeyedStores: ...

    @property
    def executor(self) -> Executor: ...
