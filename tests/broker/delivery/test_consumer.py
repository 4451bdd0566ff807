"""Acknowledged delivery: at least once, bounded, and what happens to records that nobody wants."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.delivery.consumer_errors import ConsumerDeleted, ConsumerInvalid, ConsumerTakenOver
from broker.delivery.ledger import REST_MS_MAX, Counts
from broker.delivery.standing import state_key
from broker.engine.base import StateChange
from broker.engine.embedded import EmbeddedEngine
from broker.errors import AppendUnknown, Overloaded, UnknownTopic
from tests.broker.delivery.conftest import OWNER, MakePost, Post, drain, numbers, settled_down, tags, take

TIMEOUT_MS = 30_000


class TestDelivery:
    async def test_new_records_come_once_in_commit_order(self, post: Post) -> None:
        await post.put(5)
        consumer = await post.open()
        found = await take(consumer)
        assert numbers(found) == [0, 1, 2, 3, 4]
        assert {one.attempt for one in found} == {1}
        assert await take(consumer) == []
        await post.put()
        assert numbers(await take(consumer)) == [5]

    async def test_it_begins_where_it_was_told_when_it_was_made(self, post: Post) -> None:
        await post.put(3)
        consumer = await post.open(position="latest")
        await post.put(1)
        assert numbers(await take(consumer)) == [3]

    async def test_bounds_of_one_call(self, post: Post) -> None:
        await post.put(4, batch=True)
        consumer = await post.open()
        assert numbers(await take(consumer, records_max=1)) == [0]
        assert numbers(await take(consumer, bytes_max=3)) == [1, 2]  # two bytes each: the one that reaches the bound is the last
        assert numbers(await take(consumer)) == [3]

    async def test_a_wait_ends_with_a_record(self, post: Post) -> None:
        await post.put()
        consumer = await post.open(position="latest")
        waiting = asyncio.create_task(consumer.next(bytes_max=100, records_max=10, wait_max_ms=60_000))
        await settled_down()
        assert not waiting.done()
        await post.put()
        assert numbers(await waiting) == [1]

    async def test_a_filter_over_topics_that_do_not_exist_yet(self, post: Post) -> None:
        consumer = await post.open("+/eu/#")
        await post.put(topic="orders", key=b"eu/1")
        await post.put(topic="orders", key=b"us/1")
        await post.put(topic="returns", key=b"eu/2")
        found = await take(consumer)
        assert [(one.topic, one.record.key) for one in found] == [("orders", b"eu/1"), ("returns", b"eu/2")]
        await consumer.nack(tags(found), delay_ms=0)
        assert {one.topic for one in await take(consumer)} == {"orders", "returns"}

    async def test_records_that_it_does_not_want_are_passed_over(self, post: Post) -> None:
        for number in range(10):
            await post.put(key=b"eu" if number == 7 else b"us")
        consumer = await post.open("orders/eu")
        assert numbers(await take(consumer)) == [7]
        assert await take(consumer) == []
        assert consumer.cursor.sequence == post.engine.next_sequence()

    async def test_what_the_cut_takes_away_is_settled(self, post: Post) -> None:
        await post.put(4)
        consumer = await post.open()
        found = await consumer.next(
            bytes_max=1 << 20, records_max=10, wait_max_ms=0, cut=lambda read: [one for one in read if one.record.value != b"2"]
        )
        assert numbers(found) == [0, 1, 3]
        await consumer.nack(tags(found), delay_ms=0)
        again = await consumer.next(
            bytes_max=1 << 20, records_max=10, wait_max_ms=0, cut=lambda read: [one for one in read if one.record.value != b"0"]
        )
        assert numbers(again) == [1, 3]
        await consumer.ack(tags(again))
        post.clock.pass_ms(TIMEOUT_MS)
        assert await take(consumer) == []
        assert post.consumers.counts.cut == 2

    async def test_an_error_of_the_cut_loses_nothing(self, post: Post) -> None:
        await post.put(2)
        consumer = await post.open()
        await consumer.nack(tags(await take(consumer, records_max=1)), delay_ms=0)

        def refuse(read: list[Any]) -> list[Any]:
            raise PermissionError

        with pytest.raises(PermissionError):
            await consumer.next(bytes_max=1 << 20, records_max=10, wait_max_ms=0, cut=refuse)
        found = await take(consumer)
        assert [(number, one.attempt) for number, one in zip(numbers(found), found, strict=True)] == [(0, 2), (1, 1)]

    async def test_records_held_back_at_the_bound_do_not_keep_it_busy(self, post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
        """Read, refused by the cut, and then there is no room for them: it waits for an acknowledgement, and does not spin."""
        await post.put(4, batch=True)
        consumer = await post.open(in_flight_max=4)

        def refuse(read: list[Any]) -> list[Any]:
            raise PermissionError

        with pytest.raises(PermissionError):
            await consumer.next(bytes_max=1 << 20, records_max=10, wait_max_ms=0, cut=refuse)
        post.consumers._ledgers[state_key(OWNER, "billing")]._room = 1
        (first,) = await take(consumer)
        looked: list[int] = []
        gather = type(consumer)._gather

        async def counted(self: Any, *bounds: Any) -> Any:
            looked.append(1)
            return await gather(self, *bounds)

        monkeypatch.setattr(type(consumer), "_gather", counted)
        waiting = asyncio.create_task(consumer.next(bytes_max=1 << 20, records_max=10, wait_max_ms=60_000))
        await settled_down()
        assert len(looked) == 1
        await consumer.ack([first.tag])
        assert numbers(await waiting) == [1]

    async def test_expired_and_deleted_records_are_not_delivered_again(self, post: Post) -> None:
        await post.put(ttl_ms=5_000)
        await post.put()
        consumer = await post.open()
        found = await take(consumer)
        await consumer.nack(tags(found), delay_ms=6_000)
        post.clock.pass_ms(6_000)
        assert numbers(await take(consumer)) == [1]
        assert post.consumers.counts.lost == 1

    async def test_what_retention_took_is_told_and_not_waited_for(self, post: Post) -> None:
        await post.broker.create_topic("orders", 1)
        await post.put(6)
        consumer = await post.open(in_flight_max=2)
        found = await drain(consumer, bytes_max=1)  # nothing is read ahead
        await consumer.nack(tags(found), delay_ms=0)
        await post.broker.delete_records("orders", 0, 5)
        assert numbers(await drain(consumer)) == [5]
        assert post.consumers.counts.lost == 2
        (gap,) = consumer.take_gaps()
        assert (gap.topic, gap.partition, gap.to_offset) == ("orders", 0, 5)
        assert consumer.take_gaps() == []

    async def test_a_topic_that_is_deleted_meanwhile(self, post: Post) -> None:
        await post.put(2)
        consumer = await post.open()
        await consumer.nack(tags(await take(consumer)), delay_ms=0)
        await post.broker.delete_topic("orders")
        with pytest.raises(UnknownTopic):
            await take(consumer)
        await post.put(topic="orders")  # another topic of the same name
        assert numbers(await take(consumer)) == [2]

    async def test_a_deleted_topic_of_many(self, post: Post) -> None:
        await post.put(topic="orders")
        await post.put(topic="returns")
        consumer = await post.open("#")
        await consumer.nack(tags(await take(consumer)), delay_ms=0)
        await post.broker.delete_topic("orders")
        assert [one.topic for one in await take(consumer)] == ["returns"]


class TestAcknowledgement:
    async def test_what_is_acknowledged_does_not_come_again(self, post: Post) -> None:
        await post.put(5)
        consumer = await post.open()
        found = await take(consumer)
        settled = await consumer.ack(tags(found[:2] + found[3:4]))
        assert (settled.settled, settled.unknown) == (3, [])
        post.clock.pass_ms(TIMEOUT_MS + 60_000)
        await take(consumer)
        post.clock.pass_ms(60_000)
        assert sorted(numbers(await drain(consumer))) == [2, 4]

    async def test_it_may_be_said_twice_and_late(self, post: Post) -> None:
        await post.put()
        consumer = await post.open()
        (first,) = await take(consumer)
        post.clock.pass_ms(TIMEOUT_MS)
        assert await take(consumer) == []  # waits for its second delivery
        assert (await consumer.ack([first.tag])).settled == 1
        assert (await consumer.ack([first.tag])).settled == 1
        post.clock.pass_ms(600_000)
        assert await take(consumer) == []
        assert post.consumers.counts.acknowledged == 1

    @pytest.mark.parametrize(
        "tag",
        ["", "-", "1", "1-0", "1-0-", "1-0-x", "a-b-c", "1-0-1-1", "-1-0-1", "1--0-1", " 1-0-1", "1-0-1 ", "999-0-1",
         "9" * 30 + "-0-1", "1-" + "9" * 20 + "-1", "\u0661-0-1", "1-0-\u0661", "x" * 10_000,
         "1-0-" + "9" * 100, "\ud800-0-1"],
    )  # fmt: skip
    async def test_tags_of_nothing_are_told(self, tag: str, post: Post) -> None:
        await post.put()
        consumer = await post.open()
        (first,) = await take(consumer)
        for settled in (
            await consumer.ack([tag]),
            await consumer.nack([tag]),
            await consumer.reject([tag]),
            consumer.extend([tag]),
        ):
            assert (settled.settled, settled.unknown) == (0, [tag])
        assert (await consumer.ack([tag, first.tag])).settled == 1

    async def test_it_is_durable_before_it_is_confirmed(self, post: Post) -> None:
        await post.put(3)
        consumer = await post.open()
        found = await take(consumer)
        await consumer.ack(tags(found[:2]))
        await post.again()
        assert numbers(await take(await post.open())) == [2]

    async def test_many_at_once_share_their_writes(self, post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
        await post.put(100, batch=True)
        consumer = await post.open()
        found = await take(consumer)
        appended = count_appends(post, monkeypatch)
        await asyncio.gather(*(consumer.ack([one.tag]) for one in found))
        assert 1 <= len(appended) <= 3

    async def test_whoever_acknowledges_one_by_one_has_large_states_written_at_a_bounded_rate(
        self, post: Post, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await post.put(3)
        consumer = await post.open()
        one, two, three = await take(consumer)
        slept: list[float] = []
        sleep = asyncio.sleep

        async def noted(seconds: float, *rest: Any) -> Any:
            slept.append(seconds)
            return await sleep(0, *rest)

        monkeypatch.setattr("broker.delivery.ledger.STATE_BYTES_PER_S", 10_000)  # the state of two is some 100 bytes
        await consumer.ack([one.tag])
        monkeypatch.setattr("broker.delivery.ledger.asyncio.sleep", noted)
        await consumer.ack([two.tag])
        assert len(slept) == 1
        assert 0 < slept[0] <= REST_MS_MAX / 1_000
        post.clock.pass_ms(1_000)
        await consumer.ack([three.tag])
        assert len(slept) == 1

    async def test_a_write_that_fails_confirms_nothing_and_may_be_repeated(
        self, post: Post, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await post.put(2)
        consumer = await post.open()
        found = await take(consumer)
        with monkeypatch.context() as broken:
            fail_appends(post, broken, Overloaded("appends", 1, 10))
            with pytest.raises(Overloaded):
                await consumer.ack([found[0].tag])
            with pytest.raises(Overloaded):  # said again, it is not confirmed either, though nothing is left to change
                await consumer.ack([found[0].tag])
        assert (await consumer.ack([found[0].tag])).settled == 1
        await post.again()
        assert numbers(await take(await post.open())) == [1]

    async def test_a_caller_that_goes_away_stops_no_write(self, post: Post) -> None:
        await post.put(2)
        consumer = await post.open()
        found = await take(consumer)
        going = asyncio.create_task(consumer.reject([found[0].tag]))
        await asyncio.sleep(0)
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        await consumer.ack([found[1].tag])
        assert len(await post.letters()) == 1
        post.clock.pass_ms(600_000)
        assert await take(consumer) == []


class TestRetries:
    async def test_a_record_without_acknowledgement_comes_again_after_its_time(self, post: Post) -> None:
        await post.put(2)
        consumer = await post.open(ack_timeout_ms=1_000, retry_backoff_ms=0)
        first = await take(consumer)
        post.clock.pass_ms(999)
        assert await take(consumer) == []
        post.clock.pass_ms(1)
        found = await take(consumer)
        assert numbers(found) == [0, 1]
        assert [one.attempt for one in found] == [2, 2]
        assert tags(found) != tags(first)
        assert post.consumers.counts.timed_out == 2

    async def test_more_time_may_be_asked_for(self, post: Post) -> None:
        await post.put()
        consumer = await post.open(ack_timeout_ms=1_000, retry_backoff_ms=0)
        (one,) = await take(consumer)
        post.clock.pass_ms(900)
        assert consumer.extend([one.tag]).settled == 1
        post.clock.pass_ms(900)
        assert consumer.extend([one.tag], timeout_ms=5_000).settled == 1
        post.clock.pass_ms(4_999)
        assert await take(consumer) == []
        post.clock.pass_ms(1)
        assert numbers(await take(consumer)) == [0]

    async def test_without_a_delay_the_pause_grows_and_is_drawn_by_lot(self, post: Post) -> None:
        await post.put(200, batch=True)
        consumer = await post.open(retry_backoff_ms=1_000, retry_backoff_max_ms=3_000, deliveries_max=10, in_flight_max=200)
        found = await drain(consumer)
        for ceiling_ms in (1_000, 2_000, 3_000, 3_000):
            assert len(found) == 200
            await consumer.nack(tags(found))
            assert consumer.in_flight == 0
            found = []
            for _ in range(4):
                post.clock.pass_ms(ceiling_ms // 4)
                part = await drain(consumer)
                assert 20 <= len(part) <= 80  # full jitter: evenly over the whole pause
                found += part

    async def test_a_delay_of_its_own(self, post: Post) -> None:
        await post.put(2)
        consumer = await post.open()
        one, two = await take(consumer)
        await consumer.nack([one.tag], delay_ms=0)
        await consumer.nack([two.tag], delay_ms=90_000)
        assert numbers(await take(consumer)) == [0]
        post.clock.pass_ms(89_999)
        assert 1 not in numbers(await take(consumer))
        post.clock.pass_ms(1)
        assert 1 in numbers(await take(consumer))

    async def test_a_refusal_of_an_older_attempt_says_nothing_of_the_newest(self, post: Post) -> None:
        await post.put()
        consumer = await post.open()
        (first,) = await take(consumer)
        await consumer.nack([first.tag], delay_ms=0)
        assert (await consumer.nack([first.tag], delay_ms=0)).unknown == [first.tag]
        (second,) = await take(consumer)
        assert (await consumer.nack([first.tag], delay_ms=0)).unknown == [first.tag]
        assert consumer.extend([first.tag]).unknown == [first.tag]
        assert consumer.in_flight == 1
        assert (await consumer.ack([first.tag])).settled == 1  # but it was processed, whichever delivery it was
        assert (await consumer.ack([second.tag])).settled == 1

    async def test_a_wait_ends_when_a_record_is_due(self, post: Post) -> None:
        await post.put()
        consumer = await post.open()
        (one,) = await take(consumer)
        waiting = asyncio.create_task(consumer.next(bytes_max=100, records_max=10, wait_max_ms=60_000))
        await settled_down()
        await consumer.nack([one.tag], delay_ms=0)
        assert [again.attempt for again in await waiting] == [2]

    @pytest.mark.parametrize(
        ("member", "call"),
        [
            ("delay_ms", lambda consumer: consumer.nack([], delay_ms=-1)),
            ("delay_ms", lambda consumer: consumer.nack([], delay_ms=86_400_001)),
            ("reason", lambda consumer: consumer.nack([], reason="x" * 257)),
            ("reason", lambda consumer: consumer.reject([], reason="a\nb")),
            ("reason", lambda consumer: consumer.reject([], reason="\ud800")),
        ],
    )
    async def test_arguments_out_of_range(self, member: str, call: Any, post: Post) -> None:
        await post.put()
        consumer = await post.open()
        with pytest.raises(ConsumerInvalid) as refused:
            await call(consumer)
        assert refused.value.member == member

    async def test_synchronous_arguments_out_of_range(self, post: Post) -> None:
        await post.put()
        consumer = await post.open()
        for wait_ms in (99, -1, 86_400_001):
            with pytest.raises(ConsumerInvalid):
                consumer.extend([], timeout_ms=wait_ms)
        for records in (-1, 2**31):
            with pytest.raises(ConsumerInvalid):
                consumer.credit(records)


class TestDeadLetters:
    async def test_the_last_delivery_ends_in_the_dead_letter_topic(self, post: Post) -> None:
        await post.put(key=b"eu/1", headers=[(b"source", b"till"), (b"empty", None)])
        (original,) = (await post.broker.fetch("orders", 0, 0, records_max=1, bytes_max=100, wait_max_ms=0)).records or (
            await post.broker.fetch("orders", 1, 0, records_max=1, bytes_max=100, wait_max_ms=0)
        ).records
        consumer = await post.open(deliveries_max=3, retry_backoff_ms=0)
        for attempt in (1, 2, 3):
            (one,) = await take(consumer)
            assert one.attempt == attempt
            await consumer.nack([one.tag], reason=f"attempt {attempt} failed")
        assert await take(consumer) == []
        ((record, letter),) = await post.letters()
        assert (record.key, record.value) == (b"eu/1", b"0")
        assert record.message_id == original.message_id
        assert [header for header in record.headers if not header[0].startswith("sprawl-")] == [
            ("source", b"till"),
            ("empty", None),
        ]
        assert (letter.reason, letter.detail, letter.attempts) == ("deliveries-exhausted", "attempt 3 failed", 3)
        assert (letter.topic, letter.partition, letter.offset) == ("orders", one.partition, one.record.offset)
        assert (letter.timestamp_ms, letter.consumer, letter.owner) == (one.record.timestamp_ms, "billing", "token:owner")
        assert post.consumers.counts == Counts(delivered=3, redelivered=2, refused=3, dead_lettered=1)

    async def test_so_do_time_outs(self, post: Post) -> None:
        await post.put()
        consumer = await post.open(deliveries_max=2, ack_timeout_ms=1_000, retry_backoff_ms=0)
        for _ in range(2):
            assert len(await take(consumer)) == 1
            post.clock.pass_ms(1_000)
        assert await take(consumer) == []
        ((_, letter),) = await post.letters()
        assert (letter.attempts, letter.detail) == (2, "no acknowledgement in time")

    async def test_a_rejected_record_goes_there_at_once(self, post: Post) -> None:
        await post.put(3)
        consumer = await post.open()
        found = await take(consumer)
        settled = await consumer.reject(tags(found[1:2]), reason="no such customer")
        assert settled.settled == 1
        assert (await consumer.reject(tags(found[1:2]))).settled == 1  # said again
        ((record, letter),) = await post.letters()
        assert (record.value, letter.reason, letter.detail) == (b"1", "rejected", "no such customer")

    async def test_letter_and_position_are_one_append(self, post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
        await post.put(3)
        consumer = await post.open()
        found = await take(consumer)
        await post.broker.create_topic("orders.dlq", 1)
        appended = count_appends(post, monkeypatch)
        await consumer.reject(tags(found))
        assert [(len(appends), len(changes)) for appends, changes in appended] == [(1, 1)]
        await post.again()
        assert await take(await post.open()) == []

    @pytest.mark.parametrize("failure", [Overloaded("appends", 1, 10), AppendUnknown("the disk")])
    async def test_where_no_letter_can_be_written_the_record_stays(
        self, failure: Exception, post: Post, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await post.put(2)
        consumer = await post.open(deliveries_max=1, ack_timeout_ms=1_000, retry_backoff_max_ms=5_000)
        one, two = await take(consumer)
        with monkeypatch.context() as broken:
            fail_appends(post, broken, failure)
            with pytest.raises(type(failure)):
                await consumer.reject([one.tag])
            post.clock.pass_ms(1_000)
            assert await take(consumer) == []  # nor is anything else held up by it
        await post.put()
        assert numbers(await take(consumer)) == [2]
        assert await post.letters() == []
        post.clock.pass_ms(5_000)
        await take(consumer)
        assert sorted(record.value or b"" for record, _ in await post.letters()) == [b"0", b"1", b"2"]
        assert two.attempt == 1

    async def test_where_the_topic_says(self, post: Post) -> None:
        await post.put()
        await post.broker.alter_topic("orders", configs={"dead.letter.topic": "graveyard"})
        consumer = await post.open()
        await consumer.reject(tags(await take(consumer)))
        assert len(await post.letters("graveyard")) == 1

    async def test_where_the_consumer_says(self, post: Post) -> None:
        await post.put()
        consumer = await post.open(dead_letter_topic="mine")
        await consumer.reject(tags(await take(consumer)))
        assert len(await post.letters("mine")) == 1

    async def test_the_largest_batch_has_room_there(self, post: Post) -> None:
        await post.broker.create_topic("orders", 1, {"max.message.bytes": "2000"})
        await post.put(headers=[(b"fill", b"x" * 1_500)])
        consumer = await post.open()
        await consumer.reject(tags(await take(consumer)), reason="r" * 256)
        ((record, _),) = await post.letters()
        assert record.value == b"0"

    async def test_a_letter_that_does_not_fit_leaves_its_value_in_the_log(self, post: Post) -> None:
        await post.broker.create_topic("orders.dlq", 1, {"max.message.bytes": "700"})
        await post.put(headers=[(b"h", b"x")])
        post.number = 10**600
        await post.put()
        post.number = 2
        await post.put()
        consumer = await post.open()
        await consumer.reject(tags(await take(consumer)))
        found = [(record.value, dict(record.headers).get("sprawl-dlq-value")) for record, _ in await post.letters()]
        assert found == [(b"0", None), (None, b"left out: 601 bytes are too many for this topic"), (b"2", None)]

    async def test_letters_given_up_again_stay_where_they_are(self, post: Post) -> None:
        await post.put(2)
        consumer = await post.open("#", deliveries_max=1)
        for _ in range(5):
            await consumer.reject(tags(await drain(consumer)))
        assert sorted(post.broker.topics()) == ["orders", "orders.dlq"]
        assert len(await post.letters()) == 2

    async def test_a_topic_with_the_longest_name(self, post: Post) -> None:
        topic = "t" * 249
        await post.put(topic=topic)
        consumer = await post.open(topic)
        await consumer.reject(tags(await take(consumer)))
        assert len(await post.letters("t" * 245 + ".dlq")) == 1

    async def test_an_acknowledgement_may_meet_the_letter(self, post: Post) -> None:
        """Both are true then; what matters is that it comes no more."""
        await post.put()
        consumer = await post.open()
        (one,) = await take(consumer)
        await asyncio.gather(consumer.reject([one.tag]), consumer.ack([one.tag]))
        post.clock.pass_ms(600_000)
        assert await take(consumer) == []

    async def test_more_than_fit_one_batch(self, post: Post) -> None:
        await post.broker.create_topic("orders.dlq", 1, {"max.message.bytes": "1000"})
        await post.put(20, batch=True)
        consumer = await post.open()
        await consumer.reject(tags(await take(consumer)))
        assert [record.value for record, _ in await post.letters()] == [b"%d" % number for number in range(20)]


class TestPacing:
    async def test_no_more_in_flight_than_the_bound(self, post: Post) -> None:
        await post.put(10, batch=True)
        consumer = await post.open(in_flight_max=4)
        found = await drain(consumer)
        assert numbers(found) == [0, 1, 2, 3]
        await consumer.ack(tags(found[:1]))
        assert numbers(await drain(consumer)) == [4]
        await consumer.nack(tags(found[1:2]), delay_ms=1_000)  # a record that waits keeps its place
        assert await drain(consumer) == []
        post.clock.pass_ms(1_000)
        assert numbers(await drain(consumer)) == [1]

    async def test_who_never_acknowledges_gets_no_more_and_costs_no_more(self, make_post: MakePost) -> None:
        post = make_post(ack_pending_max=50)
        await post.put(400, batch=True)
        consumer = await post.open(deliveries_max=1_000, retry_backoff_ms=0)
        held = set()
        for _ in range(30):
            found = await drain(consumer)
            assert len(found) <= 50
            held |= set(numbers(found))
            for _ in range(20):
                consumer.extend(tags(found))
            ledger = post.consumers._ledgers[next(iter(post.consumers._ledgers))]
            assert len(ledger.pending) == 50
            assert len(ledger._heap) <= 5 * 50 + 65
            post.clock.pass_ms(TIMEOUT_MS)
        assert held == set(range(50))
        assert await post.letters() == []

    async def test_waiting_at_the_bound_ends_with_an_acknowledgement(self, post: Post) -> None:
        await post.put(2)
        consumer = await post.open(in_flight_max=1)
        (one,) = await take(consumer)
        waiting = asyncio.create_task(consumer.next(bytes_max=100, records_max=10, wait_max_ms=60_000))
        await settled_down()
        assert not waiting.done()
        await consumer.ack([one.tag])
        assert numbers(await waiting) == [1]

    async def test_credit(self, post: Post) -> None:
        await post.put(5)
        consumer = await post.open()
        consumer.credit(0)
        assert await take(consumer) == []
        consumer.credit(2)
        found = await drain(consumer)
        assert numbers(found) == [0, 1]
        await consumer.nack(tags(found), delay_ms=0)
        assert await take(consumer) == []  # what comes again takes credit too
        waiting = asyncio.create_task(consumer.next(bytes_max=100, records_max=10, wait_max_ms=60_000))
        await settled_down()
        assert not waiting.done()
        consumer.credit(3)
        assert numbers(await waiting) == [0, 1, 2]

    async def test_a_pause_holds_records_and_takes_acknowledgements(self, post: Post) -> None:
        await post.put(2)
        consumer = await post.open()
        found = await take(consumer, records_max=1)
        consumer.pause()
        assert consumer.paused
        assert await take(consumer) == []
        assert (await consumer.ack(tags(found))).settled == 1
        waiting = asyncio.create_task(consumer.next(bytes_max=100, records_max=10, wait_max_ms=60_000))
        await settled_down()
        consumer.resume()
        assert numbers(await waiting) == [1]

    async def test_many_topics_fit_the_state_too(self, post: Post) -> None:
        """The bound holds for the worst that records may look like; beyond what fits there is no delivery."""
        for number in range(40):
            await post.put(topic=f"t{number}")
        consumer = await post.open("#", in_flight_max=1_000)
        found = await drain(consumer)
        assert len(found) == 40
        await consumer.ack(tags(found[::2]))
        await post.again()
        assert len(await drain(await post.open("#"))) == 20


class TestTakeover:
    async def test_the_newer_connection_has_it_and_the_older_is_told(self, post: Post) -> None:
        await post.put(3)
        older = await post.open()
        found = await take(older)
        waiting = asyncio.create_task(older.next(bytes_max=100, records_max=10, wait_max_ms=60_000))
        await settled_down()
        newer = await post.open()
        with pytest.raises(ConsumerTakenOver):
            await waiting
        for call in (older.ack(tags(found)), older.nack([]), older.reject([]), take(older)):
            with pytest.raises(ConsumerTakenOver):
                await call
        with pytest.raises(ConsumerTakenOver):
            older.extend([])
        assert (await newer.ack(tags(found[:1]))).settled == 1  # tags are good on the next connection
        again = await take(newer)
        assert [(number, one.attempt) for number, one in zip(numbers(again), again, strict=True)] == [(1, 2), (2, 2)]
        older.close()
        assert await take(newer) == []
        await post.put()
        assert numbers(await take(newer)) == [3]

    async def test_after_a_lost_connection_all_in_flight_is_due(self, post: Post) -> None:
        await post.put(3)
        first = await post.open()
        found = await take(first)
        await first.ack(tags(found[1:2]))
        first.close()
        first.close()
        second = await post.open()
        assert numbers(await take(second)) == [0, 2]
        await settled_down()
        second.close()
        await settled_down()
        assert not post.consumers._ledgers  # nobody uses it: nothing is kept
        third = await post.open()
        assert [one.attempt for one in await take(third)] == [3, 3]

    async def test_deleted_under_the_hands(self, post: Post) -> None:
        await post.put(2)
        consumer = await post.open()
        found = await take(consumer)
        await post.consumers.delete("token:owner", "billing")
        with pytest.raises(ConsumerDeleted):
            await consumer.ack(tags(found))
        consumer.close()
        await settled_down()
        assert await post.consumers.infos(None, 10) == []
        assert numbers(await take(await post.open())) == [0, 1]  # another one of this name


def count_appends(post: Post, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Any], list[StateChange]]]:
    appended: list[tuple[list[Any], list[StateChange]]] = []
    append = EmbeddedEngine.append

    async def counted(self: EmbeddedEngine, appends: Any, **rest: Any) -> Any:
        appended.append((list(appends), list(rest.get("changes", ()))))
        return await append(self, appends, **rest)

    monkeypatch.setattr(EmbeddedEngine, "append", counted)
    return appended


def fail_appends(post: Post, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    async def failing(self: EmbeddedEngine, appends: Any, **rest: Any) -> Any:
        raise failure

    monkeypatch.setattr(EmbeddedEngine, "append", failing)
