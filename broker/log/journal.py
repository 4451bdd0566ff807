"""The journal being written: frames wait, a group is assembled, written and synced (decision 0001, sections 4 and 5).

Assembly runs on the owner thread, `write` on the commit lane. A group is what arrived while the last one was synced.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import msgspec

from broker.engine.base import Stored, Told
from broker.log.files import LogFile
from broker.log.footer import WrappedKey
from broker.log.layout import (
    FILE_HEADER_BYTES,
    FORMAT_VERSION,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    JOURNAL_MAGIC,
    FileHeader,
    pack_file_header,
    pack_frame_header,
    pack_group_header,
)
from broker.log.partition import PartitionLog
from broker.log.sealing import LogKeys, SealedBatch
from broker.log.state import Entry, encode_entries, wrapped_key_entry


class PendingBatch(msgspec.Struct, eq=False):
    """One sealed batch on its way to the journal."""

    partition: PartitionLog
    stored: Stored
    sealed: SealedBatch
    previous_tag: bytes
    flags: int
    key_hashes: list[int] | None
    position: int = 0


class PendingFrame(msgspec.Struct, eq=False):
    """What is committed together. `waiter` is resolved when it is as durable as promised, or fails; `told` is called then."""

    first_sequence: int
    waiter: asyncio.Future[None] | None
    told: Told | None = None
    batches: list[PendingBatch] = []
    entries: list[Entry] = []
    flush_view: bool = False
    size: int = 0
    state_entries: int = 0  # of entries and bytes that the spaces' bounds count
    state_bytes: int = 0


class Group(msgspec.Struct, eq=False):
    """Assembled: `buffers` go to `position` of `file` in one write, up to `end`."""

    file: LogFile
    number: int
    position: int
    frames: Sequence[PendingFrame]
    end: int
    buffers: list[bytes] = []
    entries: list[Entry] = []
    flush_view: bool = False
    synced: bool = False


class ActiveJournal:
    """The file groups are appended to. Owner thread."""

    def __init__(self, file: LogFile, salt: int, first_group: int) -> None:
        self.file = file
        self.salt = salt
        self.end = FILE_HEADER_BYTES
        self.first_group = first_group
        self.last_group = first_group - 1
        self.keys: dict[tuple[bytes, int], WrappedKey] = {}
        self.system_key_id = file.entry.system_key_id

    def assemble(
        self, keys: LogKeys, pending: deque[PendingFrame], group_bytes_max: int, durable_through: int, now_ms: int, sequence: int
    ) -> Group:
        """Take frames up to the bound (at least one, if any). `sequence`: the next one, for a group without batches.

        They leave `pending` when the group is whole: whatever fails before, they are still there to be refused.
        """
        frames = [pending[0]] if len(pending) == 1 else self._up_to(pending, group_bytes_max)
        taken = len(frames)
        group = Group(self.file, self.last_group + 1, self.end, frames, self.end)
        self._lead_with_new_keys(keys, frames, sequence)
        first = frames[0].first_sequence if frames else sequence
        begin = at = self.end + GROUP_HEADER_BYTES
        buffers: list[bytes] = [b""]
        batches = 0
        for frame in frames:
            batches += len(frame.batches)
            at = self._lay_out(keys, frame, at, buffers)
            if frame.entries:
                group.entries += frame.entries
            group.flush_view = group.flush_view or frame.flush_view
        buffers[0] = pack_group_header(
            (GROUP_MAGIC, at - begin, group.number, durable_through, first, len(frames), batches, now_ms, self.salt)
        )
        group.buffers, group.end = buffers, at
        for _ in range(taken):
            pending.popleft()
        return group

    @staticmethod
    def _up_to(pending: deque[PendingFrame], group_bytes_max: int) -> list[PendingFrame]:
        frames: list[PendingFrame] = []
        size = 0
        for frame in pending:
            size += frame.size
            if frames and size > group_bytes_max:
                break
            frames.append(frame)
        return frames

    def _lead_with_new_keys(self, keys: LogKeys, frames: list[PendingFrame], sequence: int) -> None:
        """A file carries every wrapped key that its batches use, ahead of the first of them."""
        entries: list[Entry] = []
        for frame in frames:
            for batch in frame.batches:
                place = (batch.partition.topic_id, batch.sealed.key_id)
                if place not in self.keys:
                    wrapped = keys.keyring.wrapped(*place)
                    self.keys[place] = WrappedKey(*place, wrapped)
                    entries.append(wrapped_key_entry(*place, wrapped))
        if entries:
            lead = PendingFrame(frames[0].first_sequence if frames else sequence, None)
            lead.entries = entries
            frames.insert(0, lead)

    @staticmethod
    def _lay_out(keys: LogKeys, frame: PendingFrame, at: int, buffers: list[bytes]) -> int:
        directory = []
        for batch in frame.batches:
            log, stored = batch.partition, batch.stored
            delta = stored.next_offset - stored.base_offset - 1
            directory.append((log.topic_id, log.partition, delta, stored.base_offset, batch.sealed.size))
        clear = encode_entries(frame.entries) if frame.entries else b""
        state_bytes = len(clear) + 12 + 16 if clear else 0
        head = pack_frame_header(frame.first_sequence, directory, state_bytes)
        buffers.append(head)
        at += len(head)
        for batch in frame.batches:
            batch.position = at
            sealed = batch.sealed
            buffers += sealed.parts
            at += sealed.size
        if clear:
            tags = b"".join([batch.sealed.tag for batch in frame.batches])
            buffers.append(keys.seal_state(clear, head + tags))
            at += state_bytes
        return at

    def accept(self, group: Group) -> None:
        self.end = group.end
        self.last_group = group.number


def pack_journal_header(number: int, cluster_id: bytes, now_ms: int, key_id: int, wrapped: bytes, salt: int) -> bytes:
    header = FileHeader(JOURNAL_MAGIC, FORMAT_VERSION, FILE_HEADER_BYTES, number, cluster_id, now_ms, key_id, wrapped, salt)
    return pack_file_header(header)
