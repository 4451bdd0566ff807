"""Keyed stores that lose what `flush` did not cover, always from the end: a later write never survives an earlier one.

The same shape as a RocksDB write-ahead log replayed up to the first record that is not whole. What was not flushed may also be
torn so that something whole follows something that is not: RocksDB (`tolerate_corrupted_tail_records`) then refuses to open,
as it does after a flipped bit. `tests/contracts/keyed_store_contract.py` asks the same of both. `destroy` is a folder removal
nobody synced: until the new store's first flush, a power cut may bring the old one back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from broker.errors import StorageDamaged
from tests.simulation.faults import Faults
from tests.simulation.trace import Trace

LOG_WRITES_MAX = 256
"""Flushed writes kept apart from the base, so that a flipped bit in the log has a tail to take away."""
TORN_SHARE = 0.3
"""Of the power cuts that take something from a store's log."""

Watch = Callable[[Sequence[tuple[bytes, bytes]]], None]
Write = tuple[Sequence[tuple[bytes, bytes]], Sequence[bytes]]


def _apply(content: dict[bytes, bytes], write: Write) -> None:
    puts, deletes = write
    content.update(puts)
    for key in deletes:
        content.pop(key, None)


@dataclass
class StoreMedia:
    """One store as it lies on the media: a base, the writes after it, how many of those are flushed."""

    base: dict[bytes, bytes] = field(default_factory=dict)
    log: list[Write] = field(default_factory=list)
    flushed: int = 0
    damaged: bool = False
    """It does not open: a bit was flipped, or a power cut tore what was not flushed."""
    ghost: StoreMedia | None = None

    def content(self) -> dict[bytes, bytes]:
        content = dict(self.base)
        for write in self.log:
            _apply(content, write)
        return content

    def flush(self) -> None:
        self.ghost = None
        self.flushed = len(self.log)
        if len(self.log) > LOG_WRITES_MAX:
            for write in self.log:
                _apply(self.base, write)
            self.log.clear()
            self.flushed = 0


class StoresMedia:
    """What outlives the process: the stores by folder."""

    def __init__(self, random: random.Random, trace: Trace) -> None:
        self._random = random
        self._trace = trace
        self.folders: dict[str, StoreMedia] = {}
        self.torn = False
        """Whether a power cut has torn one since this was last set back."""
        self.tail_lost = False
        """Whether it has taken anything."""

    def lose_power(self, *, may_tear: bool = True) -> None:
        """A store that is torn is as good as gone: not with `may_tear` False, where what it would be rebuilt from is damaged."""
        for folder, media in list(self.folders.items()):
            if media.ghost is not None and self._random.random() < 0.5:
                self._trace.count("destroyed keyed store came back")
                self.folders[folder] = media = media.ghost
            kept = self._random.randint(media.flushed, len(media.log))
            if may_tear and kept < len(media.log) and self._random.random() < TORN_SHARE:
                self._trace.count("keyed store tail torn: will not open")
                media.damaged = self.torn = True
            else:
                self._trace.count("keyed store tail lost" if kept < len(media.log) else "keyed store tail kept")
            self.tail_lost |= kept < len(media.log)
            del media.log[kept:]
            media.flushed = len(media.log)

    def flip(self, folder: str) -> None:
        """Flipped bits: the store refuses to open, or takes its log's tail for unfinished and drops flushed writes."""
        media = self.folders[folder]
        if media.log and self._random.random() < 0.5:
            self._trace.count("flipped bit in the view: tail dropped")
            del media.log[self._random.randrange(len(media.log)) :]
            media.flushed = len(media.log)
        else:
            self._trace.count("flipped bit in the view: will not open")
            media.damaged = True


class SimulatedKeyedStore:
    def __init__(self, media: StoreMedia, folder: str, faults: Faults, trace: Trace, watch: Watch) -> None:
        self._media, self._folder, self._faults, self._trace, self._watch = media, folder, faults, trace, watch
        self._content = media.content()
        self._open = True

    def get(self, key: bytes) -> bytes | None:
        self._check()
        return self._content.get(key)

    def items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._check()
        return iter(sorted((key, value) for key, value in self._content.items() if key.startswith(prefix)))

    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        self._check()
        verdict = self._faults.meet("store write", self._folder)
        if verdict.cut_before:
            self._faults.cut()
        if verdict.error is not None:
            raise verdict.error
        write = ([(bytes(key), bytes(value)) for key, value in puts], [bytes(key) for key in deletes])
        self._trace.note("store write", self._folder, write)
        self._watch(write[0])
        self._media.log.append(write)
        _apply(self._content, write)
        if verdict.cut_after:
            self._faults.cut()

    def flush(self) -> None:
        self._check()
        verdict = self._faults.meet("store flush", self._folder)
        if verdict.cut_before:
            self._faults.cut()
        if verdict.error is not None:
            raise verdict.error
        self._trace.note("store flush", self._folder)
        self._media.flush()
        if verdict.cut_after:
            self._faults.cut()

    def close(self) -> None:
        self._check()
        self._open = False

    def _check(self) -> None:
        self._faults.alive()
        if not self._open:
            raise OSError(9, "keyed store is closed", self._folder)


class SimulatedKeyedStores:
    """`broker.seams.KeyedStores` for one life of the process."""

    def __init__(self, media: StoresMedia, faults: Faults, trace: Trace, watch: Watch) -> None:
        self._media, self._faults, self._trace, self._watch = media, faults, trace, watch

    def open(self, folder: str) -> SimulatedKeyedStore:
        self._faults.alive()
        media = self._media.folders.setdefault(folder, StoreMedia())
        if media.damaged:
            raise StorageDamaged(folder, "the keyed store's log is damaged")
        return SimulatedKeyedStore(media, folder, self._faults, self._trace, self._watch)

    def destroy(self, folder: str) -> None:
        self._faults.alive()
        old = self._media.folders.get(folder)
        self._trace.count("keyed store destroyed and rebuilt")
        self._media.folders[folder] = StoreMedia(ghost=old)
