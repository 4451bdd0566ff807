"""Batches that are numbered: once, in order, whatever happens in between (KIP-98)."""

from __future__ import annotations

import asyncio

import pytest

from broker.batch import read_header
from broker.engine.base import Append, StateSpace
from broker.errors import BatchRefused, StateFull
from broker.producers.errors import InvalidProducerEpoch, InvalidTransactionState, OutOfOrderSequence
from broker.producers.ids import BLOCK, IDS_KEY
from broker.producers.producer import BATCHES_KEPT, KEY, KeptBatch, Producer, decode, encode, last_sequence
from broker.producers.producers import Admission
from tests.broker.transactions.shop import NextLife, Shop, numbered

ONE = (1, 0)


async def test_a_batch_sent_again_is_answered_with_its_place(shop: Shop) -> None:
    assert await shop.produce(numbered(ONE, 0, b"a", b"b")) == 0
    assert await shop.produce(numbered(ONE, 2, b"c")) == 2
    again, offset, _ = shop.submit(numbered(ONE, 0, b"a", b"b"))
    assert again is not None
    assert offset == 0
    assert again.append_time_ms > 0
    assert await shop.raw() == [b"a", b"b", b"c"]


async def test_a_batch_sent_again_while_the_first_is_under_way_waits_for_it(shop: Shop) -> None:
    _, offset, waiter = shop.submit(numbered(ONE, 0, b"a"))
    again, _, pending = shop.submit(numbered(ONE, 0, b"a"))
    assert again is not None
    assert again.base_offset == offset
    assert pending is waiter
    assert pending is not None
    await asyncio.shield(pending)
    assert await shop.raw() == [b"a"]


async def test_each_of_the_last_five_is_known_and_no_older_one(shop: Shop) -> None:
    for sequence in range(BATCHES_KEPT + 1):
        await shop.produce(numbered(ONE, sequence, b"%d" % sequence))
    for sequence in range(1, BATCHES_KEPT + 1):
        assert shop.submit(numbered(ONE, sequence, b"%d" % sequence))[0] is not None
    with pytest.raises(OutOfOrderSequence, match="sequence 0"):
        shop.submit(numbered(ONE, 0, b"0"))


@pytest.mark.parametrize("sequence", [0, 2, 5, 2**31 - 1])
async def test_only_what_follows_is_taken(shop: Shop, sequence: int) -> None:
    await shop.produce(numbered(ONE, 0, b"a", b"b", b"c"))
    with pytest.raises(OutOfOrderSequence) as refusal:
        shop.submit(numbered(ONE, sequence, b"x"))
    assert refusal.value.expected == 3
    assert await shop.raw() == [b"a", b"b", b"c"]


async def test_sequences_begin_again_after_the_largest(shop: Shop) -> None:
    await shop.produce(numbered(ONE, 2**31 - 2, b"a", b"b", b"c"))  # the last of it has sequence 0
    await shop.produce(numbered(ONE, 1, b"d"))
    assert await shop.raw() == [b"a", b"b", b"c", b"d"]
    assert last_sequence(2**31 - 1, 2) == 0


async def test_who_is_not_known_may_begin_anywhere(shop: Shop) -> None:
    """As in Kafka since 2.5: its state may have expired."""
    await shop.produce(numbered((9, 3), 77, b"a"))
    await shop.produce(numbered((9, 3), 78, b"b"))
    assert await shop.raw() == [b"a", b"b"]


async def test_a_newer_epoch_begins_with_nothing_and_ends_the_older_one(shop: Shop) -> None:
    await shop.produce(numbered((1, 0), 0, b"a"))
    with pytest.raises(OutOfOrderSequence):
        shop.submit(numbered((1, 1), 1, b"x"))
    await shop.produce(numbered((1, 1), 0, b"b"))
    with pytest.raises(InvalidProducerEpoch) as refusal:
        shop.submit(numbered((1, 0), 1, b"x"))
    assert (refusal.value.found, refusal.value.current) == (0, 1)


async def test_partitions_and_producers_are_apart(shop: Shop) -> None:
    for producer in (1, 0), (2, 0):
        for partition in 0, 1:
            await shop.produce(numbered(producer, 0, b"%d" % producer[0]), partition)
    assert await shop.raw(0) == await shop.raw(1) == [b"1", b"2"]


@pytest.mark.parametrize(("producer", "sequence"), [((1, -1), 0), ((1, 0), -1)])
async def test_a_producer_id_without_the_rest_is_refused(shop: Shop, producer: tuple[int, int], sequence: int) -> None:
    with pytest.raises(BatchRefused):
        shop.submit(numbered(producer, sequence, b"a"))


async def test_a_transactional_batch_of_nobody_is_refused(shop: Shop) -> None:
    with pytest.raises(InvalidTransactionState):
        shop.submit(numbered(ONE, 0, b"a", transactional=True))


async def test_what_is_known_survives_a_restart(lives: NextLife) -> None:
    shop = await lives()
    await shop.topic()
    for sequence in range(7):
        await shop.produce(numbered(ONE, sequence, b"%d" % sequence))
    shop = await lives()
    for sequence in range(2, 7):
        again, offset, _ = shop.submit(numbered(ONE, sequence, b"%d" % sequence))
        assert again is not None
        assert offset == sequence
    with pytest.raises(OutOfOrderSequence):
        shop.submit(numbered(ONE, 8, b"x"))
    await shop.produce(numbered(ONE, 7, b"7"))
    assert await shop.raw() == [b"%d" % sequence for sequence in range(7 + 1)]


async def test_what_was_checked_and_not_appended_changes_nothing(shop: Shop) -> None:
    topic = shop.broker.topic("orders")
    shop.producers.check(topic, 0, read_header(numbered(ONE, 0, b"a")))
    await shop.produce(numbered(ONE, 0, b"b"))
    assert await shop.raw() == [b"b"]


async def test_two_batches_of_one_producer_and_partition_are_not_one_append(shop: Shop) -> None:
    topic, batch = shop.broker.topic("orders"), numbered(ONE, 0, b"a")
    found = [shop.producers.check(topic, 0, read_header(batch)) for _ in range(2)]
    admissions = [one for one in found if isinstance(one, Admission)]
    with pytest.raises(BatchRefused):
        shop.engine.submit(
            [Append("orders", 0, batch)] * 2,
            changes=lambda landed: [c for one, at in zip(admissions, landed, strict=True) for c in one.changes(at)],
        )
    await shop.produce(batch)
    assert await shop.raw() == [b"a"]


async def test_an_append_that_failed_is_as_if_it_had_not_been(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.produce(numbered(ONE, 0, b"a"))
    journal = shop.engine._committer._journal
    assert journal is not None

    def broken(position: int, buffers: object) -> int:
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(journal.file.file, "write_at", broken)
    _, _, first = shop.submit(numbered(ONE, 1, b"b"))
    _, _, second = shop.submit(numbered(ONE, 2, b"c"))
    assert first is not None
    assert second is not None
    for waiter in (first, second):
        with pytest.raises(Exception, match="disk"):
            await waiter
    await shop.mended()
    with pytest.raises(OutOfOrderSequence):  # what came before it is not there
        shop.submit(numbered(ONE, 2, b"c"))
    assert await shop.produce(numbered(ONE, 1, b"b")) == 1
    assert await shop.produce(numbered(ONE, 2, b"c")) == 2
    assert await shop.raw() == [b"a", b"b", b"c"]


async def test_the_bound_on_producers(lives: NextLife) -> None:
    shop = await lives(entries_max=2)
    await shop.topic()
    await shop.produce(numbered((1, 0), 0, b"a"))
    await shop.produce(numbered((2, 0), 0, b"b"))
    with pytest.raises(StateFull, match=r"producers\.entries_max"):
        shop.submit(numbered((3, 0), 0, b"c"))
    await shop.produce(numbered((2, 0), 1, b"d"))  # who is known goes on


async def test_producers_that_write_nothing_for_long_are_forgotten(lives: NextLife) -> None:
    """Unless they have something open."""
    shop = await lives(expiration_ms=3_600_000)
    await shop.topic()
    await shop.produce(numbered((77, 0), 0, b"a"))
    producer = await shop.begin("t", 0)
    await shop.produce(numbered(producer, 0, b"b", transactional=True), id="t")
    assert await shop.producers.expire() == 0
    shop.clock.ahead_ms = 3_700_000
    assert await shop.producers.expire() == 1
    assert [producer_id for producer_id, _ in shop.producers.of_partition(shop.broker.topic("orders"), 0)] == [producer[0]]
    assert {len(key) for key, _ in shop.engine.states(StateSpace.PRODUCER)} == {KEY.size, len(IDS_KEY)}
    await shop.produce(numbered((77, 0), 5, b"c"))  # as one that was never known


async def test_a_deleted_topic_leaves_nothing(shop: Shop) -> None:
    await shop.produce(numbered(ONE, 0, b"a"))
    await shop.broker.delete_topic("orders")
    assert len(shop.producers) == 0
    assert not list(shop.engine.states(StateSpace.PRODUCER))
    await shop.topic()
    await shop.produce(numbered(ONE, 5, b"b"))
    assert await shop.raw() == [b"b"]


async def test_producer_ids_are_never_given_twice(lives: NextLife) -> None:
    shop = await lives()
    found = [await shop.transactions.init_producer_id(None, 0) for _ in range(BLOCK + 5)]
    shop = await lives()
    found += [await shop.transactions.init_producer_id(None, 0) for _ in range(5)]
    assert len({producer_id for producer_id, _ in found}) == len(found)
    assert {epoch for _, epoch in found} == {0}


async def test_many_at_once_get_ids_of_one_block(shop: Shop) -> None:
    found = await asyncio.gather(*(shop.transactions.init_producer_id(None, 0) for _ in range(50)))
    assert sorted(producer_id for producer_id, _ in found) == list(range(50))


def test_what_is_stored_reads_back() -> None:
    producer = Producer(3, 0, open_offset=40, open_sequence=7)
    for n in range(BATCHES_KEPT + 2):
        producer = producer.with_batch(3, 2 * n, 2 * n + 1, n * 10, 1_000 + n)
    assert producer.batches == [KeptBatch(2 * n, 2 * n + 1, n * 10, 1_000 + n) for n in range(2, BATCHES_KEPT + 2)]
    assert decode(encode(producer)) == producer
    assert decode(encode(Producer(0, 0))) == Producer(0, 0)
    assert producer.ended(3, 5).batches == producer.batches
    assert producer.ended(4, 5) == Producer(4, 5)
