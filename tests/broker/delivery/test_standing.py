"""The state of a consumer as the log keeps it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.delivery.consumer_options import IN_FLIGHT_MAX, ConsumerOptions
from broker.delivery.position import Cursor
from broker.delivery.standing import (
    KEY_PREFIX,
    PENDING_AND_TOPIC_BYTES_MAX,
    VERSION,
    Kept,
    Pending,
    Run,
    Value,
    decode,
    decode_head,
    encode,
    head_bytes,
    room,
    state_key,
)
from broker.errors import FormatUnsupported, StorageDamaged

NOW_MS, CLOCK_MS, WAIT_MS_MAX = 1_790_000_000_000, 5_000, 60_000
TOPICS = {bytes([number]) * 16: f"topic-{number}" for number in range(4)}
HEAD = Kept(VERSION, "token:a", "billing", "orders/#", None, (), ConsumerOptions(), 1, 2, 900, 3, None, 0)
ENTRY_BYTES_MAX = 64 * 1024  # log.state_value_bytes_max


def pending(sequence: int, index: int, *, topic: int = 0, offset: int = 0, attempts: int = 1, in_flight: bool = True) -> Pending:
    topic_id = bytes([topic]) * 16
    return Pending(Cursor(sequence, index), f"topic-{topic}", topic_id, 0, offset, attempts, in_flight, CLOCK_MS + 70)


def test_neighbours_with_the_same_history_are_one_entry() -> None:
    records = [pending(7, index, offset=100 + index) for index in range(1, 500)]
    value = encode(HEAD, records, NOW_MS, CLOCK_MS)
    assert len(msgspec.msgpack.decode(value, type=Value).runs) == 1
    assert len(value) < 120
    _, found = decode(value, TOPICS, NOW_MS, CLOCK_MS, WAIT_MS_MAX)
    assert [(one.cursor, one.offset) for one in found] == [(one.cursor, one.offset) for one in records]


@pytest.mark.parametrize(
    "other",
    [
        pending(8, 2, offset=2),
        pending(7, 3, offset=2),
        pending(7, 2, offset=3),
        pending(7, 2, offset=2, topic=1),
        pending(7, 2, offset=2, attempts=2),
        pending(7, 2, offset=2, in_flight=False),
    ],
)
def test_others_are_not(other: Pending) -> None:
    value = encode(HEAD, [other, pending(7, 1, offset=1)], NOW_MS, CLOCK_MS)
    assert len(msgspec.msgpack.decode(value, type=Value).runs) == 2


records = st.builds(
    pending,
    st.integers(0, 20),
    st.integers(0, 6),
    topic=st.integers(0, 3),
    offset=st.integers(0, 30),
    attempts=st.integers(1, 5),
    in_flight=st.booleans(),
)


@given(st.lists(records, max_size=60, unique_by=lambda one: one.cursor))
def test_what_was_encoded_is_decoded(written: list[Pending]) -> None:
    head, found = decode(encode(HEAD, written, NOW_MS, CLOCK_MS), TOPICS, NOW_MS, CLOCK_MS, WAIT_MS_MAX)
    assert head == HEAD
    expected = sorted(written, key=lambda one: one.cursor)
    places = [(one.cursor, one.topic, one.topic_id, one.partition, one.offset, one.attempts) for one in expected]
    assert [(one.cursor, one.topic, one.topic_id, one.partition, one.offset, one.attempts) for one in found] == places
    assert not any(one.in_flight for one in found)
    assert [one.at_ms for one in found] == [CLOCK_MS if one.in_flight else one.at_ms for one in expected]


def test_waits_survive_a_clock_that_was_set() -> None:
    value = encode(HEAD, [pending(7, 1, in_flight=False)], NOW_MS, CLOCK_MS)
    for now_ms, waits_ms in ((NOW_MS, 70), (NOW_MS + 50, 20), (NOW_MS + 10**9, 0), (NOW_MS - 10**9, WAIT_MS_MAX)):
        (found,) = decode(value, TOPICS, now_ms, 10, WAIT_MS_MAX)[1]
        assert found.at_ms == 10 + waits_ms


def test_records_of_a_topic_that_is_gone_are_gone() -> None:
    value = encode(HEAD, [pending(7, 1, topic=1), pending(8, 1, topic=2)], NOW_MS, CLOCK_MS)
    names = {topic_id: name for topic_id, name in TOPICS.items() if name != "topic-1"}
    assert [one.topic for one in decode(value, names, NOW_MS, CLOCK_MS, WAIT_MS_MAX)[1]] == ["topic-2"]


def test_as_many_as_there_is_room_for_fit_whatever_they_look_like() -> None:
    """The widest numbers, each record in a topic and with a history of its own, beside the largest filter there may be."""
    largest = tuple((f"{number:03}" + "n" * 500, b"v" * 500) for number in range(16))
    head = msgspec.structs.replace(HEAD, owner="o" * 256, name="n" * 128, address="+/" + "a" * 2_000, key_prefix=b"k" * 1_024,
                                   headers=largest, next_sequence=2**62, next_index=2**31)  # fmt: skip
    count = room(head_bytes(head), IN_FLIGHT_MAX, many_topics=True)
    assert 600 < count < IN_FLIGHT_MAX
    worst = [
        Pending(
            Cursor(2**62 + number, 2**31),
            "t",
            number.to_bytes(16, "big"),
            2**31 - 1,
            2**62,
            1_000,
            False,
            CLOCK_MS + 9**9 + number,
        )
        for number in range(count)
    ]
    size = len(encode(head, worst, NOW_MS, CLOCK_MS))
    assert size <= ENTRY_BYTES_MAX
    assert size > head_bytes(head) + count * (PENDING_AND_TOPIC_BYTES_MAX - 16)  # the estimate is not idle
    one = room(head_bytes(HEAD), IN_FLIGHT_MAX, many_topics=False)
    assert one == IN_FLIGHT_MAX


def test_keys_name_nobody() -> None:
    key = state_key("token:owner", "billing")
    assert key.startswith(KEY_PREFIX)
    assert b"billing" not in key
    assert len({state_key(owner, name) for owner, name in (("a", "b/c"), ("a", "b"), ("c/a", "b"), ("b", "a"))}) == 4


def test_a_newer_version_is_named_and_not_read() -> None:
    newer = msgspec.structs.replace(HEAD, version=VERSION + 1)
    for value in (encode(newer, [], NOW_MS, CLOCK_MS), msgspec.msgpack.encode([[VERSION + 1, {"another": "shape"}]])):
        with pytest.raises(FormatUnsupported):
            decode_head(value)
        with pytest.raises(FormatUnsupported):
            decode(value, TOPICS, NOW_MS, CLOCK_MS, WAIT_MS_MAX)


def test_fields_of_a_later_build_of_this_version_are_ignored() -> None:
    value = msgspec.msgpack.encode([[*msgspec.structs.astuple(HEAD), "more"], [], [], "more"])
    assert decode(value, TOPICS, NOW_MS, CLOCK_MS, WAIT_MS_MAX) == (HEAD, [])


@pytest.mark.parametrize(
    "runs",
    [
        [Run(4, 0, 0, 0, 0, 1, 1, 0)],
        [Run(-1, 0, 0, 0, 0, 1, 1, 0)],
        [Run(0, 0, 0, 0, 0, 0, 1, 0)],
        [Run(0, 0, 0, 0, 0, -1, 1, 0)],
        [Run(0, 0, 0, 0, 0, 2**40, 1, 0)],
        [Run(0, 0, 0, -1, 0, 1, 1, 0)],
        [Run(0, 0, -1, 0, 0, 1, 1, 0)],
        [Run(0, 0, 0, number, 0, IN_FLIGHT_MAX, 1, 0) for number in range(2)],
    ],
)
def test_contradictions_are_damage(runs: list[Run]) -> None:
    with pytest.raises(StorageDamaged):
        decode(msgspec.msgpack.encode(Value(HEAD, [bytes(16)], runs)), TOPICS, NOW_MS, CLOCK_MS, WAIT_MS_MAX)


def test_every_truncated_prefix_is_damage() -> None:
    value = encode(HEAD, [pending(7, 1), pending(9, 1, topic=2)], NOW_MS, CLOCK_MS)
    for size in range(len(value)):
        with pytest.raises(StorageDamaged):
            decode(value[:size], TOPICS, NOW_MS, CLOCK_MS, WAIT_MS_MAX)
