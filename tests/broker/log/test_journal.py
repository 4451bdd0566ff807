"""Assembling commit groups: what one write holds, and that a file carries the keys of its batches."""

from __future__ import annotations

from collections import deque

import pytest

from broker.log.journal import PendingFrame
from broker.log.layout import FILE_HEADER_BYTES, GROUP_HEADER_BYTES, parse_file_header
from broker.log.recovery import open_state
from broker.log.scan import FoundFrame, frames, groups
from broker.log.state import Entry, Kind, wrapped_key_entry
from security.errors import KeyMissing
from tests.broker.log.journals import CLUSTER, NOW_MS, ORDERS, READINGS, SALT, Journal, one_record


def assemble(journal: Journal, *pending: PendingFrame, group_bytes_max: int = 1 << 20, durable_through: int = 0) -> bytes:
    waiting = deque(pending)
    group = journal.active.assemble(journal.keys, waiting, group_bytes_max, durable_through, NOW_MS, journal.next_sequence)
    assert group.end - group.position == sum(map(len, group.buffers))
    journal.active.accept(group)
    return b"".join(group.buffers)


def frames_of(data: bytes) -> list[FoundFrame]:
    return [piece for piece in frames(data, GROUP_HEADER_BYTES, len(data)) if isinstance(piece, FoundFrame)]


def entries_of(journal: Journal, data: bytes) -> list[list[Entry] | None]:
    key_id = journal.entry.system_key_id
    return [open_state(journal.keys, data, frame, key_id) if frame.state_bytes else [] for frame in frames_of(data)]


def test_the_file_header_names_the_file_and_its_system_key(journal: Journal) -> None:
    header = parse_file_header(journal.data)
    assert header is not None
    assert (header.magic, header.number, header.cluster_id, header.created_at_ms) == (b"SPJ1", 1, CLUSTER, NOW_MS)
    assert (header.system_key_id, header.wrapped_system_key) == (journal.entry.system_key_id, journal.entry.wrapped_system_key)
    assert header.salt == SALT


def test_a_group_says_how_many_it_holds_and_how_far_all_is_durable(journal: Journal) -> None:
    first = journal.frame((ORDERS, 0, one_record(b"a")), (ORDERS, 1, one_record(b"b")))
    second = journal.frame((ORDERS, 0, one_record(b"c")))
    data = assemble(journal, first, second, durable_through=8)
    (group,) = groups(data, 0, len(data), SALT)
    header = group.header
    assert (header.number, header.durable_through, header.first_sequence) == (1, 8, 1)
    assert (header.frames, header.batches) == (3, 3)
    assert header.body_bytes == len(data) - GROUP_HEADER_BYTES
    assert [frame.first_sequence for frame in frames_of(data)] == [1, 1, 3]


def test_a_group_without_frames_only_confirms(journal: Journal) -> None:
    data = assemble(journal, durable_through=5)
    (group,) = groups(data, 0, len(data), SALT)
    assert len(data) == GROUP_HEADER_BYTES
    assert (group.header.frames, group.header.body_bytes, group.header.durable_through) == (0, 0, 5)


def test_a_file_leads_with_the_wrapped_keys_its_batches_use_once(journal: Journal) -> None:
    data = assemble(journal, journal.frame((ORDERS, 0, one_record(b"a")), (READINGS, 0, one_record(b"b"))))
    expected = [
        wrapped_key_entry(
            topic, journal.keys.keyring.sealing_epoch(topic).key_id, journal.keys.keyring.sealing_epoch(topic).wrapped
        )
        for topic in (ORDERS, READINGS)
    ]
    assert entries_of(journal, data) == [expected, []]
    again = assemble(journal, journal.frame((ORDERS, 0, one_record(b"c"))))
    assert entries_of(journal, again) == [[]]


def test_a_new_epoch_of_a_topic_is_led_by_its_key(journal: Journal) -> None:
    assemble(journal, journal.frame((ORDERS, 0, one_record(b"a"))))
    journal.keys.keyring.rotate(ORDERS)
    data = assemble(journal, journal.frame((ORDERS, 0, one_record(b"b"))))
    lead = entries_of(journal, data)[0]
    assert lead is not None
    assert [(entry.kind, entry.key[:16]) for entry in lead] == [(Kind.WRAPPED_KEY, ORDERS)]


def test_positions_are_where_the_batches_lie(journal: Journal) -> None:
    first, second = journal.frame((ORDERS, 0, one_record(b"a"))), journal.frame((ORDERS, 0, one_record(b"b")))
    journal.group(first, second)
    for batch in (*first.batches, *second.batches):
        whole = journal.data[batch.position : batch.position + batch.sealed.size]
        assert whole == b"".join(batch.sealed.parts)


def test_a_group_takes_frames_up_to_its_bound_and_at_least_one(journal: Journal) -> None:
    pending = deque(journal.frame((ORDERS, 0, one_record(bytes(1000)))) for _ in range(3))
    size = pending[0].size
    taken = []
    for bound in (1, size, 2 * size, 3 * size - 1):
        waiting = deque(pending)
        group = journal.active.assemble(journal.keys, waiting, bound, 0, NOW_MS, 1)
        taken.append(sum(len(frame.batches) for frame in group.frames))
        assert list(waiting) == list(pending)[taken[-1] :]
    assert taken == [1, 1, 2, 2]


def test_frames_stay_pending_when_the_group_cannot_be_made(journal: Journal) -> None:
    # Whoever waits for them must still be found and refused.
    pending = deque([journal.frame((ORDERS, 0, one_record(b"a"))), journal.frame((READINGS, 0, one_record(b"b")))])
    before = list(pending)
    journal.keys.keyring.forget(READINGS)
    with pytest.raises(KeyMissing):
        journal.active.assemble(journal.keys, pending, 1 << 20, 0, NOW_MS, 1)
    assert list(pending) == before


def test_state_entries_are_bound_to_their_frame_and_its_batches(journal: Journal) -> None:
    entry = Entry(Kind.LOG_START, b"key", b"value")
    data = assemble(journal, journal.frame((ORDERS, 0, one_record(b"a")), entries=[entry]))
    frame = frames_of(data)[-1]
    key_id = journal.entry.system_key_id
    assert open_state(journal.keys, data, frame, key_id) == [entry]
    batch = frame.batches[0]
    assert batch.entry is not None
    tag_at = batch.position + batch.entry.sealed_bytes - 1
    other_tag = data[:tag_at] + bytes([data[tag_at] ^ 1]) + data[tag_at + 1 :]
    assert open_state(journal.keys, other_tag, frame, key_id) is None
    assert open_state(journal.keys, data, frame._replace(associated=frame.associated[:-1] + b"\x01"), key_id) is None
    assert open_state(journal.keys, data, frame, key_id + 1) is None


def test_groups_follow_each_other_without_a_hole(journal: Journal) -> None:
    for value in (b"a", b"b", b"c"):
        journal.group(journal.frame((ORDERS, 0, one_record(value))))
    found = list(groups(journal.data, FILE_HEADER_BYTES, len(journal.data), SALT))
    assert [group.header.number for group in found] == [1, 2, 3]
    assert [group.header.durable_through for group in found] == [0, 1, 2]
    assert found[-1].position + GROUP_HEADER_BYTES + found[-1].header.body_bytes == len(journal.data)
