"""Publishing once, on the real engine: the first answer again, whatever happened in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.broker import Broker, BrokerOptions, Outgoing
from broker.columns import Columns, SharedHeaders
from broker.engine.base import StateSpace
from broker.engine.embedded import EmbeddedEngine
from broker.errors import (
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    IdempotencyKeysFull,
    IdempotentTooLarge,
    UnknownPartition,
)
from broker.idempotency import PURGED_MAX, Records, fingerprint_of
from broker.idempotency_options import IdempotencyOptions
from broker.machine import MachineClock

PLAIN = SharedHeaders(())
HOUR_MS = 3_600_000


class SetClock(MachineClock):
    """The machine's, ahead or behind."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


class Shop:
    """A broker that publishes once, as the pipeline does."""

    def __init__(self, engine: EmbeddedEngine, clock: SetClock, **options: int) -> None:
        self.engine, self.clock = engine, clock
        self.broker = Broker(engine, clock, BrokerOptions(), idempotency=IdempotencyOptions(**options))
        self.once = self.broker.idempotency

    async def publish(
        self, key: str, *values: bytes, owner: str = "user:alice", topic: str = "orders", records: Records | None = None
    ) -> tuple[bool, list[tuple[int, int]]]:
        """Whether it was stored this time, and the places."""
        brought = [Outgoing(b"k", value) for value in values] if records is None else records
        if (found := self.once.earlier(owner, topic, key, brought, True)) is not None:
            return False, list(zip(found.partitions, found.offsets, strict=True))
        return True, await self.once.once(
            owner,
            topic,
            key,
            brought,
            True,
            lambda changes: self.broker.publish(topic, brought, durable=True, auto_create=True, changes=changes),
        )

    def stored(self) -> int:
        return sum(offsets.high_watermark for offsets in self.broker.offsets("orders"))


@pytest.fixture
def shop(engine: EmbeddedEngine) -> Shop:
    return Shop(engine, SetClock())


class TestOnce:
    async def test_the_second_time_nothing_is_stored_and_the_places_are_the_same(self, shop: Shop) -> None:
        fresh, places = await shop.publish("key", b"a", b"b")
        assert fresh
        assert await shop.publish("key", b"a", b"b") == (False, places)
        assert shop.stored() == 2

    @pytest.mark.parametrize("columns", [True, False])
    async def test_the_ids_are_those_that_were_stored(self, shop: Shop, columns: bool) -> None:
        def brought() -> Records:
            keys, values = [f"k{n}" for n in range(40)], [b"%d" % n for n in range(40)]
            if columns:
                return Columns(keys, values, PLAIN)
            return [Outgoing(key.encode(), value) for key, value in zip(keys, values, strict=True)]

        _, places = await shop.publish("key", records=brought())
        found = shop.once.earlier("user:alice", "orders", "key", brought(), True)
        assert found is not None
        for id, (partition, offset) in zip(found.ids, places, strict=True):
            page = await shop.broker.fetch("orders", partition, offset, records_max=1, bytes_max=100, wait_max_ms=0)
            assert page.records[0].message_id == id

    async def test_the_form_in_which_the_records_came_does_not_matter(self, shop: Shop) -> None:
        await shop.publish("key", records=Columns(["k"], [b"v"], PLAIN))
        assert (await shop.publish("key", b"v"))[0] is False

    async def test_another_publication_is_refused(self, shop: Shop) -> None:
        await shop.publish("key", b"a")
        for values in ((b"b",), (b"a", b"a"), (b"",)):
            with pytest.raises(IdempotencyKeyReused):
                await shop.publish("key", *values)
        assert shop.stored() == 1

    async def test_principals_topics_and_keys_do_not_meet(self, shop: Shop) -> None:
        assert (await shop.publish("key", b"a"))[0]
        assert (await shop.publish("key", b"b", owner="user:bob"))[0]
        assert (await shop.publish("key", b"b", topic="payments"))[0]
        assert (await shop.publish("key2", b"b"))[0]

    async def test_a_topic_made_again_knows_nothing(self, shop: Shop) -> None:
        await shop.publish("key", b"a")
        await shop.broker.delete_topic("orders")
        assert (await shop.publish("key", b"other"))[0]

    async def test_a_publish_that_was_refused_may_be_repeated(self, shop: Shop) -> None:
        await shop.broker.create_topic("orders", 2)
        with pytest.raises(UnknownPartition):
            await shop.publish("key", records=[Outgoing(b"k", b"v", partition=5)])
        assert (await shop.publish("key", b"mended"))[0]
        assert len(shop.once) == 1

    async def test_one_under_way_is_told_from_one_that_is_done(self, shop: Shop) -> None:
        await shop.broker.create_topic("orders", 1)
        first = asyncio.create_task(shop.publish("key", b"a"))
        await asyncio.sleep(0)
        for values in ((b"a",), (b"other",)):
            with pytest.raises(IdempotencyKeyInUse) as refused:
                await shop.publish("key", *values)
            assert refused.value.retry_after_ms > 0
        assert (await first)[0]
        assert (await shop.publish("key", b"a"))[0] is False

    async def test_many_at_once_store_it_once(self, shop: Shop) -> None:
        answers = await asyncio.gather(*(shop.publish("key", b"a") for _ in range(50)), return_exceptions=True)
        assert [answer[0] for answer in answers if isinstance(answer, tuple)] == [True]
        assert sum(isinstance(answer, IdempotencyKeyInUse) for answer in answers) == 49
        assert shop.stored() == 1

    async def test_a_caller_that_goes_away_lets_nobody_in_meanwhile(self, shop: Shop) -> None:
        await shop.broker.create_topic("orders", 1)
        first = asyncio.create_task(shop.publish("key", b"a"))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(IdempotencyKeyInUse):
            await shop.publish("key", b"a")
        await asyncio.wait(shop.once._under_way.values())
        assert (await shop.publish("key", b"a"))[0] is False
        assert shop.stored() == 1

    async def test_too_many_records_are_refused_before_anything_happens(self, engine: EmbeddedEngine) -> None:
        shop = Shop(engine, SetClock(), records_max=3)
        assert (await shop.publish("key", *[b"v"] * 3))[0]
        with pytest.raises(IdempotentTooLarge, match=r"records_max allows 3"):
            await shop.publish("other", *[b"v"] * 4)
        assert shop.stored() == 3

    async def test_as_many_records_as_may_be_fit_into_an_entry(self, shop: Shop) -> None:
        records = [Outgoing(b"k%d" % number, b"v", timestamp_ms=5) for number in range(1_000)]
        places = (await shop.publish("key", records=records))[1]
        again = [Outgoing(b"k%d" % number, b"v", timestamp_ms=5) for number in range(1_000)]
        assert await shop.publish("key", records=again) == (False, places)


class TestWindow:
    async def test_after_it_the_key_is_new(self, shop: Shop) -> None:
        await shop.publish("key", b"a")
        shop.clock.ahead_ms = 24 * HOUR_MS - 1_000
        assert (await shop.publish("key", b"a"))[0] is False
        shop.clock.ahead_ms = 24 * HOUR_MS + 1_000
        assert (await shop.publish("key", b"other"))[0]
        assert (await shop.publish("key", b"other"))[0] is False
        assert len(shop.once) == 1

    async def test_what_is_over_goes_with_later_publishes(self, shop: Shop) -> None:
        for number in range(PURGED_MAX + 4):
            await shop.publish(f"old{number}", b"a")
        shop.clock.ahead_ms = 25 * HOUR_MS
        await shop.publish("new1", b"a")
        assert len(shop.once) == 5
        await shop.publish("new2", b"a")
        assert len(shop.once) == 2 == len(list(shop.engine.states(StateSpace.IDEMPOTENCY)))

    async def test_a_clock_that_went_back_forgets_nothing(self, shop: Shop) -> None:
        await shop.publish("key", b"a")
        shop.clock.ahead_ms = -HOUR_MS
        assert (await shop.publish("key", b"a"))[0] is False


class TestBounds:
    async def test_at_the_bound_new_keys_are_refused_and_old_ones_answered(self, engine: EmbeddedEngine) -> None:
        shop = Shop(engine, SetClock(), keys_max=3)
        for number in range(3):
            await shop.publish(f"key{number}", b"a", owner=f"user:{number}")
        with pytest.raises(IdempotencyKeysFull, match=r"keys_max \(3\)") as refused:
            await shop.publish("key3", b"a")
        assert 23 * HOUR_MS < refused.value.retry_after_ms <= 24 * HOUR_MS
        assert (await shop.publish("key0", b"a", owner="user:0"))[0] is False
        shop.clock.ahead_ms = 25 * HOUR_MS
        assert (await shop.publish("key3", b"a"))[0]
        assert len(shop.once) == 1

    async def test_one_principal_cannot_take_the_place_of_all(self, engine: EmbeddedEngine) -> None:
        shop = Shop(engine, SetClock(), keys_max=10, keys_per_principal_max=2)
        for number in range(2):
            await shop.publish(f"key{number}", b"a")
        with pytest.raises(IdempotencyKeysFull, match=r"keys_per_principal_max \(2\)"):
            await shop.publish("key2", b"a")
        assert (await shop.publish("key2", b"a", owner="user:bob"))[0]

    async def test_those_under_way_count(self, engine: EmbeddedEngine) -> None:
        shop = Shop(engine, SetClock(), keys_max=3)
        await shop.broker.create_topic("orders", 1)
        answers = await asyncio.gather(*(shop.publish(f"key{n}", b"a") for n in range(8)), return_exceptions=True)
        assert sum(isinstance(answer, IdempotencyKeysFull) for answer in answers) == 5
        assert len(shop.once) == 3


class TestNextLife:
    async def test_the_answer_outlives_a_restart(self, open_engine: Callable[..., EmbeddedEngine]) -> None:
        engine = open_engine()
        await engine.start()
        places = (await Shop(engine, SetClock()).publish("key", b"a", b"b"))[1]
        await engine.close()
        engine = open_engine()
        await engine.start()
        shop = Shop(engine, SetClock(), keys_max=1)
        assert await shop.publish("key", b"a", b"b") == (False, places)
        with pytest.raises(IdempotencyKeyReused):
            await shop.publish("key", b"c")
        with pytest.raises(IdempotencyKeysFull):
            await shop.publish("key2", b"c")
        assert shop.stored() == 2
        await engine.close()


RECORDS = st.builds(
    Outgoing,
    key=st.none() | st.binary(max_size=3),
    value=st.none() | st.binary(max_size=3),
    headers=st.lists(st.tuples(st.binary(max_size=2), st.none() | st.binary(max_size=2)), max_size=2).map(tuple),
    timestamp_ms=st.none() | st.integers(0, 9),
    partition=st.none() | st.integers(0, 3),
    ttl_ms=st.none() | st.integers(1, 9),
)


@given(st.lists(RECORDS, min_size=1, max_size=3), st.lists(RECORDS, min_size=1, max_size=3))
def test_fingerprints_are_equal_exactly_where_the_records_are(one: Sequence[Outgoing], other: Sequence[Outgoing]) -> None:
    assert (fingerprint_of(one, True) == fingerprint_of(other, True)) == (list(one) == list(other))
    assert fingerprint_of(one, True) != fingerprint_of(one, False)
