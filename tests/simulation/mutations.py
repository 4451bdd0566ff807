"""Promises broken on purpose: each mutation takes one safeguard out of the engine, and the simulator has to notice.

A context manager each; `MUTATIONS` names them together with the kind of world that shows them soonest. A mutation that no seed
finds means a safeguard that nobody would miss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.ciphers import Cipher as Primitive
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from broker.engine.embedded import EmbeddedEngine
from broker.log import merge, reader
from broker.log.commit import Committer
from broker.log.files import LogFile
from broker.log.journal import Group
from broker.log.log_start import parse_log_start
from broker.log.merge import Merge
from broker.log.recovery import Recovery
from broker.log.reserve import DiskSpace
from broker.log.retention import RetentionClock
from broker.log.sealing import LogKeys
from broker.log.state import Entry, Kind
from broker.seams import Buffer
from security.crypto.envelope import TAG_BYTES, Cipher
from security.crypto.keyring import Epoch

FLUSH_LATER_SECONDS = 0.5
Staged = tuple[list[tuple[bytes, bytes]], list[bytes]] | None


@contextmanager
def acknowledged_before_sync() -> Iterator[None]:
    """Waiters hear of success when the group is written and not yet synced."""
    write = Committer._write

    async def hasty(self: Committer, group: Group) -> None:
        await self._store.seams.executor.run("commit", lambda: self._write_now(group, None, False))
        for frame in group.frames:
            if frame.waiter is not None and not frame.waiter.done():
                frame.waiter.set_result(None)
        await write(self, group)

    with patch.object(Committer, "_write", hasty):
        yield


@contextmanager
def visible_before_sync() -> Iterator[None]:
    """Readers see a group that is written and not yet synced; acknowledgements wait as they should."""
    write, acknowledge = Committer._write, Committer._acknowledge

    async def hasty(self: Committer, group: Group) -> None:
        await self._store.seams.executor.run("commit", lambda: self._write_now(group, None, False))
        self._publish(group)
        await write(self, group)

    def only_acknowledge(self: Committer, group: Group) -> None:
        with patch.object(self, "_publish", lambda group: None):
            acknowledge(self, group)

    with patch.object(Committer, "_write", hasty), patch.object(Committer, "_acknowledge", only_acknowledge):
        yield


@contextmanager
def failed_sync_repeated() -> Iterator[None]:
    """After a failed fdatasync it is called again, and believed: what cost PostgreSQL its data in 2018 (fsyncgate)."""

    def stubborn(file: LogFile) -> None:
        try:
            file.file.sync()
        except OSError:
            file.file.sync()

    with patch.object(Committer, "_sync_journal", staticmethod(stubborn)):
        yield


@contextmanager
def manifest_before_segment_sync() -> Iterator[None]:
    """A merged segment is listed, and what it replaces removed, while its bytes are in the page cache only."""
    with patch.object(Merge, "_sync_segment", staticmethod(lambda file: None)):
        yield


@contextmanager
def view_ahead_of_journal() -> Iterator[None]:
    """The keyed store hears of a group, durably, before the journal has it."""
    write_now = Committer._write_now

    def hasty(self: Committer, group: Group, staged: Staged, sync: bool) -> None:
        if staged is not None:
            self._view.write(staged)
            self._view.flush()
        write_now(self, group, None, sync)

    with patch.object(Committer, "_write_now", hasty):
        yield


@contextmanager
def view_flushed_after_acknowledgement() -> Iterator[None]:
    """RocksDB is flushed after the acknowledgement, when there is time: until then a topic stands in one journal only."""
    write_now, acknowledge = Committer._write_now, Committer._acknowledge

    def hasty(self: Committer, group: Group, staged: Staged, sync: bool) -> None:
        wanted, group.flush_view = group.flush_view, False
        try:
            write_now(self, group, staged, sync)
        finally:
            group.flush_view = wanted

    def acknowledge_then_flush(self: Committer, group: Group) -> None:
        acknowledge(self, group)
        if group.flush_view:
            self._spawn(flush_later(self))

    async def flush_later(self: Committer) -> None:
        await asyncio.sleep(FLUSH_LATER_SECONDS)
        with suppress(OSError):
            await self._store.seams.executor.run("commit", lambda: self._follow(None, 0, True))

    with patch.object(Committer, "_write_now", hasty), patch.object(Committer, "_acknowledge", acknowledge_then_flush):
        yield


@contextmanager
def tag_check_off() -> Iterator[None]:
    """Batches are decrypted without looking at their tag, as plain AES-CTR would."""
    make, keys = Cipher.__init__, dict[int, tuple[object, bytes]]()

    def remember(self: Cipher, key: Buffer) -> None:
        make(self, key)
        keys[id(self)] = (self, bytes(key))

    def careless(cipher: Cipher, nonce: bytes, sealed: Buffer, associated: bytes) -> bytes:
        _, key = keys[id(cipher)]
        counter = modes.CTR(nonce + b"\x00\x00\x00\x02")  # GCM's first block of text (NIST SP 800-38D, 7.1)
        decryptor = Primitive(algorithms.AES(key), counter).decryptor()
        return decryptor.update(bytes(sealed[:-TAG_BYTES])) + decryptor.finalize()

    with patch.object(Cipher, "__init__", remember), patch.object(LogKeys, "unseal", staticmethod(careless)):
        yield


@contextmanager
def chain_check_off() -> Iterator[None]:
    """Nobody asks which predecessor a batch names."""

    def careless(*_: Any) -> bool:
        return False

    with (
        patch.object(Recovery, "chain_broken", staticmethod(careless)),
        patch.object(reader, "chain_broken", careless),
        patch.object(merge, "chain_broken", careless),
    ):
        yield


@contextmanager
def nonce_reused() -> Iterator[None]:
    """After every tenth seal the counter goes back by one."""
    following = Epoch.next_nonce

    def careless(self: Epoch) -> bytes:
        nonce = following(self)
        if self._seals % 10 == 0:
            self._seals -= 1
        return nonce

    with patch.object(Epoch, "next_nonce", careless):
        yield


@contextmanager
def jumped_clock_believed() -> Iterator[None]:
    """Retention by age takes every word of the wall clock."""
    with patch.object(RetentionClock, "now_ms", lambda self: self._clock.now_ms()):
        yield


@contextmanager
def reserve_kept() -> Iterator[None]:
    """The reserve stays where it is when the disk is full."""
    with patch.object(DiskSpace, "_give_back", lambda self: None):
        yield


@contextmanager
def log_start_moved_first() -> Iterator[None]:
    """Records are let go before that is durable."""
    commit = EmbeddedEngine._commit_entries

    async def hasty(self: EmbeddedEngine, entries: list[Entry], *, flush_view: bool) -> None:
        for topic_id, partition, start in (
            parse_log_start(e) for e in entries if e.kind == Kind.LOG_START and e.value is not None
        ):
            self._store.partition(topic_id, partition).begin_at(start)
        await commit(self, entries, flush_view=flush_view)

    with patch.object(EmbeddedEngine, "_commit_entries", hasty):
        yield


MUTATIONS: dict[str, tuple[str, Callable[[], AbstractContextManager[None]]]] = {
    "acknowledged before sync": ("power", acknowledged_before_sync),
    "visible before sync": ("power", visible_before_sync),
    "failed sync repeated": ("errors", failed_sync_repeated),
    "manifest before segment sync": ("power", manifest_before_segment_sync),
    "view ahead of journal": ("power", view_ahead_of_journal),
    "RocksDB flushed after the acknowledgement": ("media", view_flushed_after_acknowledgement),
    "tag check off": ("media", tag_check_off),
    "chain check off": ("media", chain_check_off),
    "nonce reused": ("power", nonce_reused),
    "jumped clock believed": ("power", jumped_clock_believed),
    "reserve kept": ("errors", reserve_kept),
    "log start moved before it is durable": ("errors", log_start_moved_first),
}
