"""Giving space back: files of which no record is kept go as they are; what shares its file with others goes when that is merged.

Runs in turn with merges, never beside one: both replace files.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from broker.log.files import LogFile
from broker.log.manifest import FileKind, FileState
from broker.log.options import LogOptions
from broker.log.state import Entry
from broker.log.store import LogStore

StateAt = Callable[[], Awaitable[tuple[int, list[Entry]]]]
"""Makes the state durable; returns a group and all entries at it, or later ones where those are durable too."""


class Swept(msgspec.Struct, frozen=True):
    """What one sweep let go."""

    files: int = 0
    size: int = 0


def drop_dead_extents(store: LogStore) -> int:
    """Extents below their partitions' log starts; readers that are at one hold its file."""
    return sum(len(log.drop_dead()) for log in store.partitions.values() if log.log_start)


def dead_files(store: LogStore) -> list[LogFile]:
    """Files that nothing is read from any more; the one being written, and those being sealed, are not among them."""
    needed = {extent.file.number for log in store.partitions.values() for extent in log.extents}
    return [file for number, file in store.files.items() if number not in needed and _worth_it(file, store.options)]


def _worth_it(file: LogFile, options: LogOptions) -> bool:
    if file.entry.kind is FileKind.SEGMENT:
        return True
    return file.entry.state is not FileState.OPEN and file.entry.data_end >= options.sweep_journal_bytes


async def sweep(store: LogStore, state_at: StateAt) -> Swept:
    """Remove dead files. What a journal among them says of the state is first made durable elsewhere."""
    drop_dead_extents(store)
    files = dead_files(store)
    if not files:
        return Swept()
    group, entries = await state_at()
    journals = any(file.entry.kind is FileKind.JOURNAL for file in files)
    snapshot = await store.save_snapshot(group, entries) if journals else None
    size = sum(file.entry.data_end for file in files)
    await store.replace(files, snapshot, group)
    return Swept(len(files), size)
