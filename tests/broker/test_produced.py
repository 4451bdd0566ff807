"""What a producer's batch is refused for, and what it may be."""

from __future__ import annotations

import struct
from typing import Any

import crc32c
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.batch import Compression, Draft, build
from broker.batch_errors import (
    BatchTooLarge,
    CorruptBatch,
    IllegalBatch,
    TimestampRefused,
    TooManyRecords,
    UnsupportedCompression,
)
from broker.batch_header import CONTROL, TRANSACTIONAL, BatchHeader, assemble, read_header
from broker.engine.base import Topic
from broker.errors import BrokerError
from broker.produced import RECORDS_NAMED_MAX, Rules, _check_by_steps, check_produced, checked_keys, rules_of

NOW_MS = 1_700_000_000_000
RECORDS: list[Draft] = [(NOW_MS, b"a", b"1", ()), (NOW_MS + 5, b"b", b"2", ())]


def topic(**configs: str) -> Topic:
    return Topic(b"t" * 16, "orders", 1, {name.replace("_", "."): value for name, value in configs.items()}, 0)


def changed(batch: bytes, **fields: int) -> bytes:
    header = msgspec.structs.replace(read_header(batch), **fields)
    return assemble(header, batch[61:])


def check(batch: bytes, **configs: str) -> BatchHeader:
    return check_produced(rules_of(topic(**configs)), memoryview(batch), NOW_MS)


@pytest.mark.parametrize("compression", list(Compression))
def test_a_batch_as_clients_build_it_passes(compression: Compression) -> None:
    header = check(build(RECORDS, compression=compression))
    assert (header.count, header.compression) == (2, compression)


def test_a_numbered_and_a_transactional_one_pass() -> None:
    numbered = build(RECORDS, producer_id=7, producer_epoch=0, base_sequence=0)
    assert check(numbered).producer_id == 7
    assert check(changed(numbered, attributes=TRANSACTIONAL)).is_transactional


@pytest.mark.parametrize(
    ("batch", "refusal", "reason"),
    [
        (b"", IllegalBatch, "no record batch"),
        (bytes(16), IllegalBatch, "no record batch"),
        (bytes(61), CorruptBatch, "wrong magic"),
        (build(RECORDS)[:16] + b"\1" + build(RECORDS)[17:], IllegalBatch, "format 1"),
        (build(RECORDS) * 2, IllegalBatch, "more than one"),
        (build(RECORDS)[:-1], IllegalBatch, "bytes of a record batch of"),
        (build(RECORDS)[:60], IllegalBatch, "60 bytes of"),
        (build(RECORDS)[:-1] + b"\xff", CorruptBatch, "wrong checksum"),
        (build(RECORDS)[:8] + struct.pack(">i", -1) + build(RECORDS)[12:], CorruptBatch, "wrong length"),
        (build(RECORDS)[:8] + struct.pack(">i", 2**31 - 1) + build(RECORDS)[12:], IllegalBatch, "of a record batch of"),
        (build(RECORDS, base_offset=1), IllegalBatch, "base offset of 1"),
        (changed(build(RECORDS), attributes=CONTROL), IllegalBatch, "control"),
        (changed(build(RECORDS), attributes=TRANSACTIONAL), IllegalBatch, "without a producer id"),
        (changed(build(RECORDS), attributes=5), UnsupportedCompression, "codec 5"),
        (changed(build(RECORDS), count=0), IllegalBatch, "0 records"),
        (changed(build(RECORDS), count=-1), CorruptBatch, "negative count"),
        (changed(build(RECORDS), count=1), IllegalBatch, "1 records"),
        (changed(build(RECORDS), last_offset_delta=2_000), IllegalBatch, "2 records"),
        (changed(build(RECORDS), count=9, last_offset_delta=8), CorruptBatch, "count 9"),
        (changed(build(RECORDS), producer_id=7), IllegalBatch, "sequence -1"),
        (changed(build(RECORDS), max_timestamp_ms=NOW_MS + 3_600_001), TimestampRefused, "after.max.ms"),
    ],
)
def test_what_is_refused(batch: bytes, refusal: type[BrokerError], reason: str) -> None:
    with pytest.raises(refusal, match=reason):
        check(batch)


def test_its_size_is_the_topics_to_bound() -> None:
    batch = build(RECORDS)
    assert check(batch, max_message_bytes=str(len(batch)))
    with pytest.raises(BatchTooLarge, match=r"max\.message\.bytes allows"):
        check(batch, max_message_bytes=str(len(batch) - 1))


def test_its_times_are_the_topics_to_bound() -> None:
    late = build([(NOW_MS + 10, b"k", b"v", ())])
    assert check(late, message_timestamp_after_max_ms="10")
    with pytest.raises(TimestampRefused, match="after"):
        check(late, message_timestamp_after_max_ms="9")
    early = build([(NOW_MS - 10, b"k", b"v", ())])
    assert check(early, message_timestamp_before_max_ms="10")
    with pytest.raises(TimestampRefused, match="before"):
        check(early, message_timestamp_before_max_ms="9")


def test_where_the_node_dates_records_theirs_do_not_matter() -> None:
    far = build([(NOW_MS + 10**9, b"k", b"v", ())])
    assert check(far, message_timestamp_type="LogAppendTime")


def test_every_truncated_prefix_is_refused() -> None:
    batch = build(RECORDS, compression=Compression.LZ4)
    for end in range(len(batch)):
        with pytest.raises(BrokerError):
            check(batch[:end])


class TestKeys:
    def test_nobody_asks(self) -> None:
        garbage = memoryview(changed(build(RECORDS), attributes=int(Compression.GZIP)))
        assert checked_keys(rules_of(topic()), garbage, wanted=False) is None

    def test_of_a_compacted_topic_each_record_has_one(self) -> None:
        rules = rules_of(topic(cleanup_policy="compact"))
        assert checked_keys(rules, memoryview(build(RECORDS)), wanted=False) == [b"a", b"b"]
        keyless: Draft = (NOW_MS, None, b"v", ())
        with pytest.raises(IllegalBatch) as refusal:
            checked_keys(rules, memoryview(build([RECORDS[0], keyless, RECORDS[1], keyless])), wanted=False)
        assert [index for index, _ in refusal.value.records] == [1, 3]
        many = build([keyless] * (RECORDS_NAMED_MAX + 1))
        with pytest.raises(IllegalBatch) as refusal:
            checked_keys(rules, memoryview(many), wanted=False)
        assert len(refusal.value.records) == RECORDS_NAMED_MAX

    def test_where_they_are_asked_for_records_have_to_agree_with_their_header(self) -> None:
        with pytest.raises(CorruptBatch):
            checked_keys(rules_of(topic()), memoryview(changed(build(RECORDS), count=1)), wanted=True)


# What is seen at one look


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
    st.sampled_from([Compression.NONE, Compression.LZ4]),
    st.sampled_from([{}, {"producer_id": 3, "producer_epoch": 0, "base_sequence": 4}]),
    st.booleans(),
    st.integers(-5, 5),
)
def test_a_look_says_what_the_steps_say(
    flips: list[tuple[int, int]], codec: Compression, producer: dict[str, int], mend: bool, cut: int
) -> None:
    """Bytes of the header are changed, with the checksum made good or not, and the end is moved."""
    batch = bytearray(build(RECORDS, compression=codec, **producer))
    for at, value in flips:
        batch[at] = value
    if mend:
        struct.pack_into(">I", batch, 17, crc32c.crc32c(bytes(batch[21:])))
    data = memoryview(bytes(batch) + bytes(cut) if cut >= 0 else bytes(batch)[:cut])
    rules = rules_of(topic())
    assert _outcome(check_produced, rules, data) == _outcome(_check_by_steps, rules, data)


def _outcome(check: Any, rules: Rules, data: memoryview) -> Any:
    try:
        return check(rules, data, NOW_MS)
    except BrokerError as refusal:
        return type(refusal), str(refusal)


def test_more_records_than_a_batch_may_have() -> None:
    rules = rules_of(topic(), 1)
    assert check_produced(rules, memoryview(build(RECORDS[:1])), NOW_MS).count == 1
    with pytest.raises(TooManyRecords, match=r"a batch of 2 records; pipeline\.batch_records_max allows 1"):
        check_produced(rules, memoryview(build(RECORDS)), NOW_MS)
