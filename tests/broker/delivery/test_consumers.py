"""Making, finding, moving and deleting durable consumers; what of them survives the node."""

from __future__ import annotations

import asyncio

import pytest

from broker.delivery.consumer_errors import ConsumerConflict, ConsumersFull, ConsumerUnknown
from broker.delivery.position import AtOffset, AtTime, Cursor
from broker.delivery.standing import state_key
from broker.engine.base import StateChange, StateSpace
from broker.errors import StorageDamaged, UnknownTopic
from tests.broker.delivery.conftest import OWNER, MakePost, Post, drain, numbers, settled_down, tags, take


async def test_it_is_there_after_a_restart(post: Post) -> None:
    await post.put(6)
    consumer = await post.open(deliveries_max=9)
    found = await take(consumer)
    await consumer.ack(tags(found[:2] + found[4:5]))
    await consumer.nack(tags(found[3:4]), delay_ms=5_000)
    before = await post.consumers.info(OWNER, "billing")
    await post.again()
    after = await post.consumers.info(OWNER, "billing")
    assert (after.filter, after.terms, after.position, after.next) == (before.filter, before.terms, before.position, before.next)
    assert (after.pending, after.in_flight, after.connected, after.lag_records) == (3, 0, False, 3)
    consumer = await post.open()
    again = await take(consumer)
    assert [(number, one.attempt) for number, one in zip(numbers(again), again, strict=True)] == [(2, 2), (5, 2)]
    post.clock.pass_ms(5_000)
    assert numbers(await take(consumer)) == [3]


async def test_a_new_one_may_begin_anywhere(post: Post) -> None:
    await post.broker.create_topic("orders", 1)
    for number in range(4):
        await post.put(timestamp_ms=post.clock.now_ms() + number * 1_000)
    sequence = (await take(await post.open(name="all")))[1].cursor
    rows: list[tuple[str, object, list[int]]] = [
        ("earliest", "earliest", [0, 1, 2, 3]),
        ("latest", "latest", []),
        ("cursor", sequence, [2, 3]),
        ("offset", AtOffset(0, 3), [3]),
        ("time", AtTime(post.clock.now_ms() + 1_500), [2, 3]),
    ]
    for name, position, expected in rows:
        consumer = await post.open(name=name, position=position)  # type: ignore[arg-type]
        consumer.close()
        await post.again()  # where it begins is durable before anything was delivered
        assert numbers(await drain(await post.open(name=name))) == expected, name


async def test_a_topic_that_is_not_there(post: Post) -> None:
    with pytest.raises(UnknownTopic):
        await post.open("nothing")
    assert await post.consumers.infos(None, 10) == []


async def test_its_filter_is_fixed(post: Post) -> None:
    await post.put()
    (await post.open()).close()
    with pytest.raises(ConsumerConflict):
        await post.open("orders/k")


async def test_owners_do_not_meet(post: Post) -> None:
    await post.put(2)
    mine, theirs = await post.open(), await post.open(owner="token:other")
    await mine.ack(tags(await take(mine)))
    assert numbers(await take(theirs)) == [0, 1]
    assert [info.owner for info in await post.consumers.infos(None, 10)] == ["token:other", OWNER]
    assert [info.owner for info in await post.consumers.infos(OWNER, 10)] == [OWNER]
    assert len(await post.consumers.infos(None, 1)) == 1


async def test_seeking_forgets_what_was_open(post: Post) -> None:
    await post.put(4)
    consumer = await post.open()
    found = await take(consumer)
    await post.consumers.seek(OWNER, "billing", found[1].cursor)
    assert numbers(await take(consumer)) == [2, 3]
    post.clock.pass_ms(60_000)
    assert (await consumer.ack(tags(found[:1]))).settled == 1  # before the new place: nothing to be done about it
    await post.consumers.seek(OWNER, "billing", "latest")
    await post.again()
    assert await take(await post.open()) == []
    with pytest.raises(ConsumerUnknown):
        await post.consumers.seek(OWNER, "other", "latest")


async def test_seeking_while_it_reads(post: Post) -> None:
    await post.put(50)
    consumer = await post.open()
    await post.consumers.seek(OWNER, "billing", "latest")
    reading = asyncio.create_task(consumer.next(bytes_max=100, records_max=5, wait_max_ms=60_000))
    await settled_down()
    await post.consumers.seek(OWNER, "billing", "earliest")
    assert numbers(await reading)[:1] == [0]


async def test_giving_it_away(post: Post) -> None:
    await post.put(3)
    consumer = await post.open()
    await consumer.ack(tags(await take(consumer))[:1])
    await post.consumers.give(OWNER, "billing", "token:heir")
    with pytest.raises(ConsumerUnknown):
        await post.consumers.info(OWNER, "billing")
    await post.again()
    assert numbers(await take(await post.open(owner="token:heir"))) == [1, 2]
    await post.open()
    with pytest.raises(ConsumerConflict):
        await post.consumers.give(OWNER, "billing", "token:heir")


async def test_bounds(make_post: MakePost) -> None:
    post = make_post(consumers_max=3, consumers_per_owner_max=2)
    await post.put()
    await post.open(name="a")
    await post.open(name="b")
    with pytest.raises(ConsumersFull):
        await post.open(name="c")
    await post.open(name="z", owner="token:other")
    with pytest.raises(ConsumersFull):
        await post.open(name="b", owner="token:other")
    with pytest.raises(ConsumersFull):
        await post.consumers.give("token:other", "z", OWNER)
    await post.open(name="a")  # those that exist may always be used
    await post.consumers.delete(OWNER, "a")
    await post.open(name="b", owner="token:other")
    await post.again()  # and they are counted again from the log
    with pytest.raises(ConsumersFull):
        await post.open(name="c", owner="token:third")


async def test_lag_counts_what_is_behind(make_post: MakePost) -> None:
    post = make_post()
    await post.put(3)
    await post.put(5, batch=True)
    consumer = await post.open()
    assert (await post.consumers.info(OWNER, "billing")).lag_records == 8
    found = await take(consumer, records_max=5)
    assert (await post.consumers.info(OWNER, "billing")).lag_records == 8  # delivered is not settled
    await consumer.ack(tags(found))
    assert (await post.consumers.info(OWNER, "billing")).lag_records == 3
    await post.put(topic="returns")
    assert (await post.consumers.info(OWNER, "billing")).lag_records == 3
    await post.open("#", "everything")
    assert (await post.consumers.info(OWNER, "everything")).lag_records == 9
    await post.broker.delete_topic("orders")
    assert (await post.consumers.info(OWNER, "billing")).lag_records is None


async def test_a_lag_over_too_many_partitions_is_not_counted(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.delivery.consumers.LAG_READS_MAX", 1)
    await post.put(3)
    await post.open()
    assert (await post.consumers.info(OWNER, "billing")).lag_records is None


async def test_a_state_that_cannot_be_read_is_named_and_stops_no_other(post: Post) -> None:
    await post.put()
    await post.open(name="good")
    await post.open(name="bad")
    broken = StateChange(StateSpace.POSITION, state_key(OWNER, "bad"), b"\xc1")
    await post.engine.append([], changes=[broken])
    await post.again()
    assert [info.name for info in await post.consumers.infos(None, 10)] == ["good"]
    with pytest.raises(StorageDamaged):
        await post.open(name="bad")
    await post.open(name="good")


@pytest.mark.parametrize("turns", range(0, 12))
async def test_a_caller_that_goes_away_leaves_nothing_half_made(turns: int, post: Post) -> None:
    await post.put(2)
    going = asyncio.create_task(post.open())
    for _ in range(turns):
        await asyncio.sleep(0)
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    if not going.cancelled():
        going.result().close()
    await settled_down()
    assert post.consumers._live == {}
    assert post.consumers._ledgers == {}
    in_the_log = [key for key, _ in post.engine.states(StateSpace.POSITION)]
    assert len(await post.consumers.infos(None, 10)) == len(in_the_log)
    assert numbers(await take(await post.open())) == [0, 1]


async def test_nothing_of_idle_consumers_is_kept(post: Post) -> None:
    await post.put(5)
    for number in range(20):
        consumer = await post.open(name=f"c{number}")
        await take(consumer)
        consumer.close()
    await settled_down()
    assert post.consumers._ledgers == {}
    assert post.consumers._live == {}
    stats = post.consumers.stats()
    assert (stats.consumers, stats.connected, stats.records.delivered) == (20, 0, 100)


async def test_what_was_read_is_saved_when_the_node_stops(post: Post) -> None:
    for number in range(5):
        await post.put(key=b"k" if number == 4 else b"other")
    consumer = await post.open("orders/k")
    found = await take(consumer)
    assert numbers(found) == [4]
    await post.consumers.close()
    await post.again()
    info = await post.consumers.info(OWNER, "billing")
    assert (info.position, info.next) == (found[0].cursor, Cursor(post.engine.next_sequence()))
    assert [one.attempt for one in await take(await post.open("orders/k"))] == [2]
