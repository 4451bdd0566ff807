"""Transactions on the real engine: all or nothing, for every reader, through restarts (KIP-98, KIP-360, KIP-890)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from broker.batch import read_header, walk_raw
from broker.broker import Outgoing
from broker.delivery.consumer_options import DeliveryOptions
from broker.delivery.consumers import Consumers
from broker.delivery.filter import Filter
from broker.engine.base import Append, StateSpace
from broker.errors import StateFull
from broker.groups.offsets import GroupOffset
from broker.machine import MachineRandom
from broker.producers.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTransactionState,
    InvalidTransactionTimeout,
    OutOfOrderSequence,
    ProducerFenced,
    TransactionalIdInvalid,
    TransactionalIdUnknown,
)
from broker.producers.producers import Admission
from broker.transactions.transaction import EPOCH_EXHAUSTED, TransactionState
from tests.broker.transactions.shop import TIMEOUT_MS, NextLife, Producer, Shop, numbered


async def write(shop: Shop, producer: Producer, sequence: int, *values: bytes, partition: int = 0, id: str = "t") -> int:
    return await shop.produce(numbered(producer, sequence, *values, transactional=True), partition, id=id)


async def publish(shop: Shop, value: bytes, partition: int = 0) -> None:
    await shop.broker.publish("orders", [Outgoing(b"k", value, (), partition=partition)], durable=True, auto_create=False)


async def test_what_is_committed_is_read_from_then_on(shop: Shop) -> None:
    producer = await shop.begin("t", 0, 1)
    await write(shop, producer, 0, b"a")
    await write(shop, producer, 0, b"b", partition=1)
    assert (shop.stable(0), shop.high(0)) == (0, 1)
    assert await shop.read(0) == await shop.read(1) == await shop.tailed() == []
    assert await shop.transactions.end("t", producer, commit=True) == producer
    assert (shop.stable(0), shop.high(0)) == (2, 2)  # a marker has an offset
    assert await shop.read(0) == [b"a"]
    assert await shop.read(1) == [b"b"]
    assert await shop.tailed() == [b"a", b"b"]


async def test_what_is_aborted_is_never_read(shop: Shop) -> None:
    await publish(shop, b"before")
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"x", b"y")
    await publish(shop, b"beside")
    await write(shop, producer, 2, b"z")
    await shop.transactions.end("t", producer, commit=False)
    await publish(shop, b"after")
    assert await shop.read() == await shop.tailed() == [b"before", b"beside", b"after"]
    topic = shop.broker.topic("orders")
    (one,) = shop.stability.aborted(topic.topic_id, 0, 0, 100)
    assert (one.producer_id, one.first_offset, one.marker_offset) == (producer[0], 1, 5)
    assert shop.stability.aborted(topic.topic_id, 0, 6, 100) == []
    assert shop.stability.aborted(topic.topic_id, 0, 0, 1) == []


async def test_what_is_open_holds_back_what_follows(shop: Shop) -> None:
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"a")
    await publish(shop, b"later")
    await publish(shop, b"elsewhere", partition=1)
    assert await shop.read(0) == []
    assert await shop.read(1) == [b"elsewhere"]
    assert await shop.tailed() == []  # commit order is one order over all partitions of the topic
    await shop.transactions.end("t", producer, commit=True)
    assert await shop.read(0) == [b"a", b"later"]
    assert await shop.tailed() == [b"a", b"later", b"elsewhere"]


async def test_the_earliest_of_several_open_ones_counts(shop: Shop) -> None:
    one, two = await shop.begin("one", 0), await shop.begin("two", 0)
    await write(shop, one, 0, b"1", id="one")
    await write(shop, two, 0, b"2", id="two")
    assert shop.stable() == 0
    await shop.transactions.end("one", one, commit=True)
    assert shop.stable() == 1
    assert await shop.read() == [b"1"]
    await shop.transactions.end("two", two, commit=False)
    assert shop.stable() == shop.high() == 4
    assert await shop.read() == [b"1"]


@pytest.mark.parametrize("commit", [True, False])
async def test_a_marker_says_how_it_ended(shop: Shop, commit: bool) -> None:
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"a")
    await shop.transactions.end("t", producer, commit=commit)
    fetched = await shop.engine.fetch("orders", 0, 1, bytes_max=1)
    (stored,) = fetched.batches
    header = read_header(stored.batch)
    assert header.is_control
    assert header.is_transactional
    assert (header.producer_id, header.producer_epoch, header.base_sequence, header.count) == (*producer, -1, 1)
    ((_, _, key, value, headers),) = walk_raw(stored.batch)
    assert (key, value, headers) == (bytes((0, 0, 0, int(commit))), bytes(6), ())


async def test_partitions_that_got_nothing_have_a_marker_too(shop: Shop) -> None:
    producer = await shop.begin("t", 0, 1)
    await write(shop, producer, 0, b"a")
    await shop.transactions.end("t", producer, commit=False)
    assert shop.high(1) == 1
    assert await shop.read(1) == []
    assert shop.stability.aborted(shop.broker.topic("orders").topic_id, 1, 0, 9) == []


async def test_waiting_readers_wake_when_it_ends(shop: Shop) -> None:
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"a")
    by_offset = asyncio.ensure_future(shop.read(wait_max_ms=20_000))
    in_order = asyncio.ensure_future(shop.engine.tail("orders", 1, bytes_max=1 << 20, wait_max_ms=20_000))
    over_all = asyncio.ensure_future(shop.engine.scan(1, topics=lambda name: True, bytes_max=1 << 20, wait_max_ms=20_000))
    await publish(shop, b"b")
    await asyncio.sleep(0.02)
    assert not by_offset.done()
    assert not in_order.done()
    assert not over_all.done()
    await shop.transactions.end("t", producer, commit=True)
    assert await by_offset == [b"a", b"b"]
    assert [stored.base_offset for stored in (await in_order).batches] == [0, 1]
    assert [stored.base_offset for _, stored in (await over_all).batches] == [0, 1]


async def test_readers_step_over_much_that_was_aborted(shop: Shop) -> None:
    producer = await shop.begin("t", 0)
    for sequence in range(20):
        await write(shop, producer, sequence, bytes(2_000))
    await shop.transactions.end("t", producer, commit=False)
    await publish(shop, b"after")
    tail = await asyncio.wait_for(shop.engine.tail("orders", 1, bytes_max=2_500, wait_max_ms=60_000), 20)
    assert [stored.base_offset for stored in tail.batches] == [21]
    page = await shop.broker.fetch("orders", 0, 0, records_max=10, bytes_max=2_500, wait_max_ms=60_000)
    assert [record.value for record in page.records] == [b"after"]
    assert page.next_offset == 22


async def test_the_newest_of_a_key_is_the_newest_that_is_committed(shop: Shop) -> None:
    partition = shop.broker._route(shop.broker.topic("orders")).partitioner.partition(b"k")
    await shop.broker.publish("orders", [Outgoing(b"k", b"old", ())], durable=True, auto_create=False)
    producer = await shop.begin("t", partition)
    await write(shop, producer, 0, b"new", partition=partition)
    for expected in (b"old", b"old"):
        found = await shop.broker.latest("orders", b"k")
        assert found is not None
        assert found[1].value == expected
        if expected == b"old" and shop.transactions.describe("t").is_ongoing:
            await shop.transactions.end("t", producer, commit=False)
    await shop.transactions.add_partitions("t", producer, [await shop.place(partition)])
    await write(shop, producer, 1, b"newest", partition=partition)
    await shop.transactions.end("t", producer, commit=True)
    found = await shop.broker.latest("orders", b"k")
    assert found is not None
    assert found[1].value == b"newest"


async def test_subscriptions_have_committed_records_only(shop: Shop) -> None:
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"x")
    await shop.transactions.end("t", producer, commit=False)
    await shop.transactions.add_partitions("t", producer, [await shop.place(0)])
    await write(shop, producer, 1, b"a")
    await shop.transactions.end("t", producer, commit=True)
    for key in (None, b"k"):
        subscription = await shop.broker.subscribe("orders", key, "earliest")
        found = await subscription.next(bytes_max=1 << 20, records_max=10, wait_max_ms=1_000)
        assert [one.record.value for one in found] == [b"a"]


async def test_a_transaction_goes_on_after_a_restart(lives: NextLife) -> None:
    shop = await lives()
    await shop.topic()
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"a")
    shop = await lives()
    assert shop.stable() == 0
    assert await shop.read() == await shop.tailed() == []
    assert (await write(shop, producer, 0, b"a"), await write(shop, producer, 1, b"b")) == (0, 1)
    await shop.transactions.end("t", producer, commit=True)
    assert await shop.read() == [b"a", b"b"]


async def test_what_was_aborted_stays_so_after_a_restart(lives: NextLife) -> None:
    shop = await lives()
    await shop.topic()
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"x")
    await shop.transactions.end("t", producer, commit=False)
    await publish(shop, b"a")
    shop = await lives()
    assert await shop.read() == await shop.tailed() == [b"a"]
    assert shop.transactions.describe("t").state is TransactionState.COMPLETE_ABORT
    assert await shop.transactions.end("t", producer, commit=False) == producer


async def test_an_end_asked_for_again_is_answered_the_same(shop: Shop) -> None:
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"a")
    for _ in range(3):
        assert await shop.transactions.end("t", producer, commit=True) == producer
    with pytest.raises(InvalidTransactionState):
        await shop.transactions.end("t", producer, commit=False)
    assert shop.high() == 2


async def test_nothing_to_end(shop: Shop) -> None:
    producer = await shop.transactions.init_producer_id("t", TIMEOUT_MS)
    for commit in (True, False):
        with pytest.raises(InvalidTransactionState):
            await shop.transactions.end("t", producer, commit=commit)


async def test_who_comes_later_fences_who_was_there(shop: Shop) -> None:
    old = await shop.begin("t", 0)
    await write(shop, old, 0, b"x")
    new = await shop.begin("t", 0)
    assert new[0] == old[0]
    assert new[1] > old[1]
    assert await shop.read() == []
    assert shop.stable() == shop.high() == 2
    with pytest.raises(InvalidProducerEpoch):
        await write(shop, old, 1, b"y")
    with pytest.raises(ProducerFenced):
        await shop.transactions.add_partitions("t", old, [await shop.place(1)])
    with pytest.raises(ProducerFenced):
        await shop.transactions.end("t", old, commit=True)
    await write(shop, new, 0, b"a")
    await shop.transactions.end("t", new, commit=True)
    assert await shop.read() == [b"a"]


async def test_a_batch_needs_its_partition_in_the_transaction(shop: Shop) -> None:
    producer = await shop.begin("t", 0)
    with pytest.raises(InvalidTransactionState, match="orders/1"):
        await write(shop, producer, 0, b"x", partition=1)
    await shop.transactions.end("t", producer, commit=True)
    with pytest.raises(InvalidTransactionState):
        await write(shop, producer, 0, b"x")
    with pytest.raises(InvalidProducerIdMapping):
        await write(shop, (producer[0] + 1, 0), 0, b"x")
    with pytest.raises(InvalidProducerIdMapping):
        await write(shop, producer, 0, b"x", id="nobody")


async def test_a_batch_of_no_transaction_from_a_producer_in_one_is_refused(shop: Shop) -> None:
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"a")
    with pytest.raises(InvalidTransactionState):
        await shop.produce(numbered(producer, 1, b"x"))


async def test_partitions_join_with_their_first_batches(shop: Shop) -> None:
    """KIP-890: no AddPartitionsToTxn, and an epoch for each transaction."""
    producer = await shop.transactions.init_producer_id("t", TIMEOUT_MS)
    for partition in (0, 1):
        await shop.produce(numbered(producer, 0, b"a", transactional=True), partition, id="t", joins=True)
    assert shop.transactions.describe("t").has(shop.broker.topic("orders").topic_id, 1)
    following = await shop.transactions.end("t", producer, commit=True, bumps=True)
    assert following == (producer[0], producer[1] + 1)
    assert await shop.transactions.end("t", producer, commit=True, bumps=True) == following  # its answer was lost
    with pytest.raises(InvalidTransactionState):
        await shop.transactions.end("t", producer, commit=False, bumps=True)
    with pytest.raises(InvalidProducerEpoch):
        await shop.produce(numbered(producer, 1, b"late", transactional=True), id="t", joins=True)
    with pytest.raises(OutOfOrderSequence):
        await shop.produce(numbered(following, 1, b"x", transactional=True), id="t", joins=True)
    await shop.produce(numbered(following, 0, b"b", transactional=True), id="t", joins=True)
    await shop.transactions.end("t", following, commit=False, bumps=True)
    assert await shop.read(0) == [b"a"]
    assert await shop.read(1) == [b"a"]


async def test_joins_in_one_append_all_count(shop: Shop) -> None:
    producer = await shop.transactions.init_producer_id("t", TIMEOUT_MS)
    topic, batch = shop.broker.topic("orders"), numbered(producer, 0, b"a", transactional=True)
    found = [shop.producers.check(topic, partition, read_header(batch), transactional_id="t", joins=True) for partition in (0, 1)]
    admissions = [one for one in found if isinstance(one, Admission)]
    appends = [Append("orders", partition, batch) for partition in (0, 1)]
    _, waiter = shop.engine.submit(
        appends, changes=lambda landed: [c for one, at in zip(admissions, landed, strict=True) for c in one.changes(at)]
    )
    for one in admissions:
        one.submitted(waiter)
    assert waiter is not None
    await asyncio.shield(waiter)
    assert {place.partition for place in shop.transactions.describe("t").places} == {0, 1}
    await shop.transactions.end("t", producer, commit=True, bumps=True)
    assert await shop.read(0) == await shop.read(1) == [b"a"]


async def test_an_empty_transaction_may_be_aborted_when_epochs_grow(shop: Shop) -> None:
    producer = await shop.transactions.init_producer_id("t", TIMEOUT_MS)
    following = await shop.transactions.end("t", producer, commit=False, bumps=True)
    assert following == (producer[0], producer[1] + 1)
    assert shop.transactions.describe("t").started_ms > 0, "the time of its end, as Kafka has it"
    with pytest.raises(InvalidTransactionState):
        await shop.transactions.end("t", following, commit=True, bumps=True)


async def test_epochs_that_run_out_take_a_new_producer_id(shop: Shop) -> None:
    producer = await shop.transactions.init_producer_id("t", TIMEOUT_MS)
    held = shop.transactions._held["t"]
    held.transaction = msgspec.structs.replace(held.transaction, epoch=EPOCH_EXHAUSTED)
    last = (producer[0], EPOCH_EXHAUSTED)
    await shop.produce(numbered(last, 0, b"a", transactional=True), id="t", joins=True)
    following = await shop.transactions.end("t", last, commit=True, bumps=True)
    assert following[0] != producer[0]
    assert following[1] == 0
    assert await shop.transactions.end("t", last, commit=True, bumps=True) == following
    held.transaction = msgspec.structs.replace(held.transaction, epoch=EPOCH_EXHAUSTED)
    again = await shop.transactions.init_producer_id("t", TIMEOUT_MS)
    assert again[0] not in (producer[0], following[0])
    assert again[1] == 0
    assert await shop.read() == [b"a"]


async def test_a_producer_that_goes_on_after_an_error(shop: Shop) -> None:
    """KIP-360: it says what it has, and gets the next epoch; asked again, the same one."""
    producer = await shop.transactions.init_producer_id("t", TIMEOUT_MS)
    following = await shop.transactions.init_producer_id("t", TIMEOUT_MS, producer)
    assert following == (producer[0], producer[1] + 1)
    assert await shop.transactions.init_producer_id("t", TIMEOUT_MS, producer) == following
    await shop.transactions.init_producer_id("t", TIMEOUT_MS)  # another run of it
    with pytest.raises(ProducerFenced):
        await shop.transactions.init_producer_id("t", TIMEOUT_MS, following)
    with pytest.raises(ProducerFenced):
        await shop.transactions.init_producer_id("t", TIMEOUT_MS, (producer[0] + 7, 0))


async def test_one_that_goes_on_with_an_open_transaction(shop: Shop) -> None:
    """What was open is aborted with the epoch that it gets, so that its next batches, numbered anew, are taken."""
    producer = await shop.transactions.init_producer_id("t", TIMEOUT_MS)
    await shop.produce(numbered(producer, 0, b"open", transactional=True), id="t", joins=True)
    following = await shop.transactions.init_producer_id("t", TIMEOUT_MS, producer)
    assert following == (producer[0], producer[1] + 1)
    assert await shop.transactions.init_producer_id("t", TIMEOUT_MS, producer) == following
    await shop.produce(numbered(following, 0, b"next", transactional=True), id="t", joins=True)
    await shop.transactions.end("t", following, commit=True, bumps=True)
    assert await shop.read() == [b"next"]


async def test_offsets_count_when_it_is_committed(shop: Shop) -> None:
    producer, topic = await shop.begin("t", 0), shop.broker.topic("orders")
    with pytest.raises(InvalidTransactionState, match="readers"):
        await shop.transactions.commit_offsets("t", producer, "readers", [GroupOffset(topic.topic_id, 0, 5)])
    await shop.transactions.add_offsets("t", producer, "readers")
    await shop.transactions.commit_offsets("t", producer, "readers", [GroupOffset(topic.topic_id, 0, 5, 0, "m")])
    assert shop.offsets.committed("readers", topic.topic_id, 0) is None
    assert shop.transactions.unstable("readers", topic.topic_id, 0)
    assert not shop.transactions.unstable("readers", topic.topic_id, 1)
    assert not shop.transactions.unstable("others", topic.topic_id, 0)
    await shop.transactions.end("t", producer, commit=True)
    found = shop.offsets.committed("readers", topic.topic_id, 0)
    assert found is not None
    assert (found.offset, found.leader_epoch, found.metadata) == (5, 0, "m")
    assert not shop.transactions.unstable("readers", topic.topic_id, 0)
    assert len(list(shop.engine.states(StateSpace.TRANSACTION))) == 1


async def test_offsets_of_an_aborted_transaction_do_not_count(lives: NextLife) -> None:
    shop = await lives()
    topic = await shop.topic()
    producer = await shop.begin("t", 0)
    await shop.transactions.commit_offsets("t", producer, "readers", [GroupOffset(topic.topic_id, 0, 5)], joins=True)
    shop = await lives()
    assert shop.transactions.unstable("readers", topic.topic_id, 0)
    await shop.transactions.end("t", producer, commit=False)
    assert shop.offsets.committed("readers", topic.topic_id, 0) is None
    assert not shop.transactions.unstable("readers", topic.topic_id, 0)
    assert len(list(shop.engine.states(StateSpace.TRANSACTION))) == 1


async def test_offsets_survive_a_restart_before_the_end(lives: NextLife) -> None:
    shop = await lives()
    topic = await shop.topic()
    producer = await shop.begin("t", 0)
    for partition, offset in ((0, 5), (1, 6), (0, 7)):
        await shop.transactions.commit_offsets("t", producer, "g", [GroupOffset(topic.topic_id, partition, offset)], joins=True)
    shop = await lives()
    await shop.transactions.end("t", producer, commit=True)
    assert [(one.partition, one.offset) for one in shop.offsets.all("g")] == [(0, 7), (1, 6)]


async def test_a_transaction_open_for_too_long_is_aborted_and_its_producer_fenced(shop: Shop) -> None:
    producer = await shop.begin("t", 0, timeout_ms=1_000)
    await write(shop, producer, 0, b"x")
    assert await shop.transactions.abort_overdue() == 0
    shop.clock.ahead_ms = 2_000
    assert await shop.transactions.abort_overdue() == 1
    assert shop.stable() == shop.high() == 2
    assert await shop.read() == []
    stats = shop.transactions.stats()
    assert (stats.ids, stats.open, stats.aborted, stats.overdue, stats.aborted_kept, stats.producers) == (1, 0, 1, 1, 1, 1)
    with pytest.raises(ProducerFenced):
        await shop.transactions.end("t", producer, commit=True)
    with pytest.raises(InvalidProducerEpoch):
        await write(shop, producer, 1, b"y")
    following = await shop.begin("t", 0)
    await write(shop, following, 0, b"a")
    await shop.transactions.end("t", following, commit=True)
    assert await shop.read() == [b"a"]


async def test_the_clock_looks_by_itself(lives: NextLife) -> None:
    shop = await lives(check_ms=10)
    await shop.topic()
    producer = await shop.begin("t", 0, timeout_ms=1_000)
    await write(shop, producer, 0, b"x")
    shop.clock.ahead_ms = 2_000
    marker = await shop.engine.fetch("orders", 0, 1, bytes_max=1, wait_max_ms=20_000)
    assert [stored.base_offset for stored in marker.batches] == [1]
    assert shop.stable() == shop.high() == 2


@pytest.mark.parametrize("timeout_ms", [0, -1, 900_001])
async def test_timeouts_that_are_refused(shop: Shop, timeout_ms: int) -> None:
    with pytest.raises(InvalidTransactionTimeout):
        await shop.transactions.init_producer_id("t", timeout_ms)


@pytest.mark.parametrize("id", ["", "x" * 401, "é" * 201])
async def test_ids_that_are_refused(shop: Shop, id: str) -> None:
    with pytest.raises(TransactionalIdInvalid):
        await shop.transactions.init_producer_id(id, TIMEOUT_MS)


async def test_bounds(lives: NextLife) -> None:
    shop = await lives(ids_max=1, partitions_max=1, aborted_max=1)
    await shop.topic()
    producer = await shop.begin("t", 0)
    with pytest.raises(StateFull, match=r"transactions\.partitions_max"):
        await shop.transactions.add_partitions("t", producer, [await shop.place(1)])
    with pytest.raises(StateFull, match=r"transactions\.ids_max"):
        await shop.transactions.init_producer_id("other", TIMEOUT_MS)
    await write(shop, producer, 0, b"x")
    await shop.transactions.end("t", producer, commit=False)
    with pytest.raises(StateFull, match=r"transactions\.aborted_max"):
        await shop.transactions.add_partitions("t", producer, [await shop.place(0)])


async def test_an_id_that_is_used_while_others_are_forgotten_stays(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transaction would never end: nobody could read on, and its producer would be told that it is somebody else's."""
    for id in ("idle", "used"):
        producer = await shop.begin(id, 0)
        await shop.transactions.end(id, producer, commit=True)
    shop.clock.ahead_ms = 8 * 86_400_000
    append = shop.engine.append
    begun: list[Producer] = []

    async def meanwhile(*arguments: Any, **named: Any) -> Any:
        if not begun:
            begun.append(await shop.begin("used", 0))
            await write(shop, begun[0], 0, b"a", id="used")
            shop.transactions.describe("used")
        return await append(*arguments, **named)

    monkeypatch.setattr(shop.engine, "append", meanwhile)
    await shop.transactions.expire()
    await shop.transactions.end("used", begun[0], commit=True)
    assert await shop.read() == [b"a"]
    with pytest.raises(TransactionalIdUnknown):
        shop.transactions.describe("idle")


async def test_ids_that_could_not_be_forgotten_are_known(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = await shop.begin("t", 0)
    await shop.transactions.end("t", producer, commit=True)
    shop.clock.ahead_ms = 8 * 86_400_000

    async def full(*_: Any, **__: Any) -> None:
        raise StateFull("state", 0)

    with monkeypatch.context() as patched:
        patched.setattr(shop.engine, "append", full)
        with pytest.raises(StateFull):
            await shop.transactions.expire()
    assert shop.transactions.describe("t").state is TransactionState.COMPLETE_COMMIT
    await shop.transactions.expire()
    with pytest.raises(TransactionalIdUnknown):
        shop.transactions.describe("t")


async def test_a_mistake_of_ours_does_not_end_the_watch_over_timeouts(lives: NextLife, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = await lives(check_ms=10)
    looked = asyncio.Event()

    async def broken() -> None:
        if broken_times:
            looked.set()
            return
        broken_times.append(1)
        raise KeyError("t")

    broken_times: list[int] = []
    monkeypatch.setattr(shop.transactions, "expire", broken)
    monkeypatch.setattr("broker.transactions.transactions.CARE_MS", 0)
    await looked.wait()


async def test_what_is_out_of_date_is_forgotten(shop: Shop) -> None:
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"x")
    await shop.transactions.end("t", producer, commit=False)
    await shop.transactions.expire()
    assert shop.stability.aborted_count == 1
    await shop.broker.delete_records("orders", 0, -1)
    await shop.transactions.expire()
    assert shop.stability.aborted_count == 0
    assert not list(shop.engine.states(StateSpace.ABORTED))
    shop.clock.ahead_ms = 8 * 86_400_000
    await shop.transactions.expire()
    with pytest.raises(TransactionalIdUnknown):
        shop.transactions.describe("t")
    assert not list(shop.engine.states(StateSpace.TRANSACTION))
    with pytest.raises(InvalidProducerIdMapping):
        await shop.transactions.end("t", producer, commit=False)


async def test_a_topic_deleted_meanwhile_needs_no_end(shop: Shop) -> None:
    await shop.topic("other")
    producer = await shop.begin("t", 0)
    await shop.transactions.add_partitions("t", producer, [await shop.place(0, "other")])
    await write(shop, producer, 0, b"a")
    await shop.produce(numbered(producer, 0, b"b", transactional=True), id="t", name="other")
    await shop.broker.delete_topic("other")
    await shop.topic("other")
    await shop.transactions.end("t", producer, commit=True)
    assert await shop.read() == [b"a"]
    assert shop.high(0, "other") == 0


async def test_an_end_that_failed_leaves_it_open(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"a")
    topic = shop.broker.topic("orders")
    await shop.transactions.commit_offsets("t", producer, "g", [GroupOffset(topic.topic_id, 0, 5)], joins=True)
    journal = shop.engine._committer._journal
    assert journal is not None

    def broken(position: int, buffers: object) -> int:
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(journal.file.file, "write_at", broken)
    with pytest.raises(Exception, match="disk"):
        await shop.transactions.end("t", producer, commit=False)
    assert shop.transactions.describe("t").is_ongoing
    assert shop.transactions.unstable("g", topic.topic_id, 0)
    assert shop.stable() == 0
    assert shop.stability.aborted(topic.topic_id, 0, 0, 9) == []
    await shop.mended()
    await publish(shop, b"b")
    assert await shop.read() == await shop.tailed() == []
    await write(shop, producer, 1, b"c")
    await shop.transactions.end("t", producer, commit=True)
    assert await shop.read() == await shop.tailed() == [b"a", b"b", b"c"]
    assert [one.offset for one in shop.offsets.all("g")] == [5]


async def test_the_next_transaction_may_begin_before_the_end_is_visible(shop: Shop) -> None:
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"a")
    ending = asyncio.ensure_future(shop.transactions.end("t", producer, commit=False))
    await asyncio.sleep(0)
    adding = asyncio.ensure_future(shop.transactions.add_partitions("t", producer, [await shop.place(0)]))
    await asyncio.sleep(0)
    _, _, waiter = shop.submit(numbered(producer, 1, b"b", transactional=True), id="t")
    assert shop.stable() == 0
    await asyncio.gather(ending, adding)
    assert waiter is not None
    await asyncio.shield(waiter)
    assert shop.stable() == 2
    assert await shop.read() == []
    await shop.transactions.end("t", producer, commit=True)
    assert await shop.read() == await shop.tailed() == [b"b"]


async def test_readers_of_many_topics_are_held_back_and_wake(shop: Shop) -> None:
    """Those that share their scans too, however many wait, and nobody spins meanwhile."""
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"a")
    await publish(shop, b"b", partition=1)
    subscriptions = [await shop.broker.subscribe_filter(Filter.parse("#"), "earliest") for _ in range(3)]
    for one in subscriptions:
        assert await one.next(bytes_max=1 << 20, records_max=10, wait_max_ms=0) == []
    assert all(one.at_end for one in subscriptions)
    reads = shop.broker.shared_scans.stats().reads
    waiting = [asyncio.ensure_future(one.next(bytes_max=1 << 20, records_max=10, wait_max_ms=20_000)) for one in subscriptions]
    await asyncio.sleep(0.05)
    assert not any(one.done() for one in waiting)
    assert shop.broker.shared_scans.stats().reads - reads <= 2 * len(subscriptions)
    await shop.transactions.end("t", producer, commit=True)
    for found in await asyncio.gather(*waiting):
        assert [one.record.value for one in found] == [b"a", b"b"]


@pytest.mark.parametrize("filter", ["orders", "#"])
async def test_a_durable_consumer_waits_for_the_end(shop: Shop, filter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = await shop.begin("t", 0)
    await write(shop, producer, 0, b"a")
    await publish(shop, b"b")
    consumers = Consumers(shop.engine, shop.clock, MachineRandom(), DeliveryOptions())
    consumers.wide = shop.broker.shared_scans.source
    looks, tail, scan = 0, shop.engine.tail, shop.engine.scan

    def counted(work: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal looks
            looks += 1
            return work(*given, **named)

        return call

    monkeypatch.setattr(shop.engine, "tail", counted(tail))
    monkeypatch.setattr(shop.engine, "scan", counted(scan))
    consumer = await consumers.attach("user:alice", "billing", Filter.parse(filter), position="earliest")
    waiting = asyncio.ensure_future(consumer.next(bytes_max=1 << 20, records_max=10, wait_max_ms=20_000))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert looks < 20, "it waits, and does not look again and again"
    await shop.transactions.end("t", producer, commit=True)
    assert [one.record.value for one in await waiting] == [b"a", b"b"]
    await consumers.close()


async def test_of_many_aborted_only_those_below_the_log_start_are_forgotten(shop: Shop) -> None:
    one, two = await shop.begin("one", 0), await shop.begin("two", 0)
    for number in range(4):
        for id, producer in (("one", one), ("two", two)):
            await shop.transactions.add_partitions(id, producer, [await shop.place(0)])
            await write(shop, producer, number, b"x", id=id)
            await shop.transactions.end(id, producer, commit=False)
    topic_id = shop.broker.topic("orders").topic_id
    assert shop.stability.aborted_count == 8
    await shop.broker.delete_records("orders", 0, 10)  # five transactions of two offsets each
    await shop.transactions.expire()
    left = shop.stability.aborted(topic_id, 0, 0, 100)
    assert [(found.first_offset, found.marker_offset) for found in left] == [(10, 11), (12, 13), (14, 15)]
    assert [found.producer_id for found in left] == [two[0], one[0], two[0]]
    assert shop.stability.aborted_count == len(list(shop.engine.states(StateSpace.ABORTED))) == 3
    assert await shop.read(wait_max_ms=0) == []


async def test_an_end_that_failed_is_overdue_in_time(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its producer need not come back for that."""
    producer = await shop.begin("t", 0, timeout_ms=1_000)
    await write(shop, producer, 0, b"a")
    journal = shop.engine._committer._journal
    assert journal is not None

    def broken(position: int, buffers: object) -> int:
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(journal.file.file, "write_at", broken)
    with pytest.raises(Exception, match="disk"):
        await shop.transactions.end("t", producer, commit=True)
    await shop.mended()
    assert shop.transactions.stats().open == 1
    shop.clock.ahead_ms = 2_000
    assert await shop.transactions.abort_overdue() == 1
    assert shop.stable() == shop.high() == 2
    assert await shop.read() == []


async def test_what_is_over_is_forgotten_where_nobody_reads(shop: Shop) -> None:
    producer = await shop.begin("t", 0)
    for number in range(10):
        await shop.transactions.add_partitions("t", producer, [await shop.place(0)])
        await write(shop, producer, number, b"a")
        await shop.transactions.end("t", producer, commit=True)
    topic_id = shop.broker.topic("orders").topic_id
    assert len(shop.stability._open[topic_id][0]) == 1
    assert shop.stable() == shop.high()
    assert not shop.stability._open
