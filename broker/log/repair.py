"""Making good what can be made good, offline, and putting on record what cannot.

It does what the next start would do anyway (manifest copies alike again, footers from the data, view from snapshot and journals,
snapshot anew, unsealed journals read to their last confirmed group), and more: every range that `verify` found lost is written
into its file's footer, so that readers are told before they meet it and merges carry it; damaged indexes are written again. No
byte that was lost is dropped before a copy of it lies in `quarantine/`, sealed as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from broker.engine.embedded import LOCK_PATH, EmbeddedEngine
from broker.log.examination import summary_of
from broker.log.files import LogFile
from broker.log.findings import Finding, Severity, Verdict
from broker.log.footer import DamagedRange
from broker.log.options import LogOptions
from broker.log.store import VIEW_FOLDER, LogStore
from broker.seams import Disk, Seams
from security.crypto.keystore import KeyStore

QUARANTINE_FOLDER = "quarantine"
COPY_BYTES = 4 * 1024 * 1024
HOLDER = "sprawl log repair"

_NEVER = 1 << 40  # files, bytes, ms: no merge and no retention moves anything while repairs are written


class Action(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One thing that repair does, or would do."""

    what: str
    path: str
    start: int | None = None
    end: int | None = None


def plan(verdict: Verdict) -> list[Action]:
    """What `repair` does about the findings, in this order."""
    return [action for found in verdict.findings for action in _actions(found)]


def _actions(found: Finding) -> Iterator[Action]:
    if found.severity is Severity.LOST or found.what == "tail":
        if found.start is not None and found.end is not None:
            yield Action(f"copy the damaged bytes to {quarantine_path(found)}", found.path, found.start, found.end)
        if found.severity is Severity.LOST and found.from_offset is not None:
            yield Action(f"put {_which(found)} on record as lost", found.path)
        if found.what == "tail":
            yield Action("cut the unconfirmed tail", found.path, found.start, found.end)
    elif found.severity is Severity.MENDABLE:
        yield Action(_MENDING.get(found.what, "write it again"), found.path, found.start, found.end)
    elif found.what == "orphan":
        yield Action("remove it: no manifest lists it", found.path)


_MENDING = {
    "manifest": "write both copies again from the whole one",
    "key store": "write both copies again from the whole one",
    "footer": "write it again from the file's batches",
    "index": "write the footer again from the file's batches",
    "snapshot": "write it again from the view and the journals",
    "view": "build it again from the snapshot and the journals",
}


def _which(found: Finding) -> str:
    return f"{found.topic}/{found.partition} offsets {found.from_offset} to {(found.to_offset or 1) - 1}"


def quarantine_path(found: Finding) -> str:
    return f"{QUARANTINE_FOLDER}/{found.path.replace('/', '-')}.{found.start}-{found.end}"


class Repair:
    """Of one folder. The lock is free: the engine takes it."""

    def __init__(self, seams: Seams, keystore: KeyStore, options: LogOptions) -> None:
        self._seams = seams
        self._keystore = keystore
        self._options = msgspec.structs.replace(
            options, merge_files_min=_NEVER, merge_dead_bytes=_NEVER, retention_check_ms=_NEVER
        )

    async def run(self, verdict: Verdict) -> list[Action]:
        """What was done. Raises what a start raises, before anything is changed but the copies in `quarantine/`."""
        await self._seams.executor.run("background", lambda: self._before_start(verdict))
        engine = EmbeddedEngine(self._seams, self._keystore, self._options, HOLDER)
        await engine.start()
        try:
            await engine.mend(lambda store: Footers(store).put_on_record(verdict.findings))
        finally:
            await engine.close()
        return plan(verdict)

    def _before_start(self, verdict: Verdict) -> None:
        """Blocking."""
        release = self._seams.disk.lock(LOCK_PATH, HOLDER)
        try:
            self._quarantine([found for found in verdict.findings if _copied(found)])
            views = [found.severity for found in verdict.findings if found.what == "view"]
            if views and Severity.LOST not in views:
                self._seams.stores.destroy(VIEW_FOLDER)  # the start builds it again from what is whole
        finally:
            release()

    def _quarantine(self, wanted: Sequence[Finding]) -> None:
        """Copies are durable before anything else happens; one that is there already is of an earlier repair."""
        if not wanted:
            return
        disk = self._seams.disk
        disk.make_folder(QUARANTINE_FOLDER)
        disk.sync_folder("")
        for found in wanted:
            if not disk.exists(quarantine_path(found)):
                _copy(disk, found)
        disk.sync_folder(QUARANTINE_FOLDER)


def _copied(found: Finding) -> bool:
    return (found.severity is Severity.LOST or found.what == "tail") and found.start is not None


def _copy(disk: Disk, found: Finding) -> None:
    assert found.start is not None
    assert found.end is not None
    target = quarantine_path(found)
    unfinished = f"{target}.new"
    if disk.exists(unfinished):
        disk.remove(unfinished)
    source, copy = disk.open(found.path), disk.open(unfinished, create=True)
    try:
        for at in range(found.start, found.end, COPY_BYTES):
            copy.write_at(at - found.start, [source.read_at(at, min(COPY_BYTES, found.end - at))])
        copy.sync()
    finally:
        source.close()
        copy.close()
    disk.rename(unfinished, target)


class Footers:
    """Footers that say what was found. Owner thread, while nothing merges and nobody reads."""

    def __init__(self, store: LogStore) -> None:
        self._store = store

    async def put_on_record(self, findings: Sequence[Finding]) -> None:
        for found in findings:
            if found.severity is Severity.LOST and found.from_offset is not None:
                self._note(found)
        mended = {found.path for found in findings if found.what == "index"}
        for file in [self._store.files[number] for number in self._store.summaries if number in self._store.files]:
            if file.path in mended or await self._says_less(file):
                await self._rewrite(file)

    def _note(self, found: Finding) -> None:
        log = self._store.partitions.get((found.topic_id, found.partition or 0))
        if log is None or not log.extents:
            return
        assert found.from_offset is not None
        assert found.to_offset is not None
        extent = log.extents[min(log.extent_at_offset(found.from_offset), len(log.extents) - 1)]
        lost = DamagedRange(found.from_offset, found.to_offset, found.problem)
        if not any(known.start <= lost.start and lost.end <= known.end for known in log.damage()):
            extent.summary.damage.append(lost)

    async def _says_less(self, file: LogFile) -> bool:
        """Whether the footer on disk leaves damage out that is known by now: the start keeps some in memory only."""
        run = self._store.seams.executor.run
        written = await run("background", lambda: summary_of(self._store.keys, file.entry, file.file))
        on_record = {(part.topic_id, part.partition): part.damage for part in (written.partitions if written else ())}
        known = [extent.summary for extent in self._store.live_extents(file)]
        return any(part.damage != on_record.get((part.topic_id, part.partition), []) for part in known)

    async def _rewrite(self, file: LogFile) -> None:
        summary = self._store.summaries[file.number]
        for extent in self._store.live_extents(file):
            extent.index = await self._store.index_of(extent)
        await self._store.seal_in_place(
            file, file.entry.data_end, summary.first_group, summary.last_group, summary.keys, summary.unattributed
        )
