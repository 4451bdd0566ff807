"""Whole batches on the way in, on a real engine: each refused for itself, those that pass stored together."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from broker.batch import Compression, Draft, build, keys, read_header, walk
from broker.batch_errors import BatchTooLarge, CorruptBatch, IllegalBatch, TooManyRecords
from broker.errors import UnknownPartition, UnknownTopic
from broker.produced import OPENED_AT_ONCE_MAX
from broker.producers.errors import OutOfOrderSequence
from gateway.errors import Busy
from gateway.pipeline import PipelineOptions
from gateway.producing import Produced, ProducedBatch
from security.errors import AccessDenied, QuotaExceeded, TokenExpired, TokenRevoked
from security.policy.quotas import RateLimit


def batch(*keys: str | None, at_ms: int, **producer: int) -> bytes:
    drafts: list[Draft] = [(at_ms, None if key is None else key.encode(), b"v", ()) for key in keys]
    return build(drafts, compression=Compression.LZ4, **producer)


async def produce(door: Any, session: Any, *batches: tuple[str, int, bytes], durable: bool = True) -> list[Produced]:
    wanted = [ProducedBatch(topic, partition, memoryview(data)) for topic, partition, data in batches]
    return await door.pipeline.producing.produce(session, wanted, durable=durable)


async def stored(door: Any, topic: str = "orders", partition: int = 0) -> list[bytes]:
    fetched = await door.engine.fetch(topic, partition, 0, bytes_max=1 << 20)
    return [one.batch for one in fetched.batches]


@pytest.fixture
async def now_ms(door: Any) -> int:
    await door.engine.create_topic("orders", 2, {})
    now: int = door.clock.now_ms()
    return now


async def test_batches_are_stored_as_they_came(door: Any, now_ms: int) -> None:
    session = await door.session("publisher")
    first, second = batch("a", "b", at_ms=now_ms), batch("c", at_ms=now_ms)
    answers = await produce(door, session, ("orders", 0, first), ("orders", 1, second))
    assert [(one.error, one.base_offset, one.append_time_ms, one.log_start) for one in answers] == [(None, 0, -1, 0)] * 2
    [again] = await produce(door, session, ("orders", 0, second))
    assert again.base_offset == 2
    assert (await stored(door))[0][16:] == first[16:]  # all after base offset, length and leader epoch
    assert [read_header(one).partition_leader_epoch for one in await stored(door)] == [0, 0]
    assert door.count("records_in_total", protocol="rest") == 4
    assert door.count("bytes_in_total", protocol="rest") == len(first) + 2 * len(second)
    assert [entry[2:5] for entry in door.audited if entry[0] == "access"] == [("publish", "orders", "allowed")] * 2


async def test_the_received_buffer_may_be_used_again_at_once(door: Any, now_ms: int) -> None:
    session = await door.session("publisher")
    received = bytearray(batch("a", at_ms=now_ms))
    under_way = asyncio.create_task(produce(door, session, ("orders", 0, received)))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    received[:] = bytes(len(received))
    await under_way
    assert [record.key for data in await stored(door) for record in walk(data)] == [b"a"]


async def test_requests_land_in_the_order_in_which_they_began(door: Any, now_ms: int) -> None:
    session = await door.session("publisher")
    asked = [produce(door, session, ("orders", 0, batch(f"{number}", at_ms=now_ms))) for number in range(50)]
    answers = await asyncio.gather(*asked)
    assert [one.base_offset for [one] in answers] == list(range(50))


async def test_each_is_refused_for_itself(door: Any, now_ms: int) -> None:
    session = await door.session("publisher")
    good = batch("a", at_ms=now_ms)
    answers = await produce(
        door,
        session,
        ("orders", 0, good),
        ("orders", 9, good),
        ("nowhere", 0, good),
        ("orders", 1, good[:-1] + bytes([good[-1] ^ 1])),
        ("orders", 0, good),
    )
    kinds = [type(one.error) for one in answers]
    assert kinds == [type(None), UnknownPartition, UnknownTopic, CorruptBatch, IllegalBatch]
    assert len(await stored(door)) == 1
    assert not await stored(door, partition=1)


async def test_a_topic_that_may_not_be_written_is_refused_before_it_is_looked_for(door: Any, now_ms: int) -> None:
    session = await door.session("subscriber")
    answers = await produce(door, session, ("orders", 0, b""), ("orders", 1, b""), ("nowhere", 0, b""))
    assert [type(one.error) for one in answers] == [AccessDenied] * 3
    assert [entry[3:5] for entry in door.audited if entry[0] == "access"] == [
        ("topic orders", "denied"),
        ("topic nowhere", "denied"),
    ]


async def test_one_forbidden_key_refuses_the_batch(door: Any, now_ms: int) -> None:
    session = await door.session("eu-writer")
    answers = await produce(
        door,
        session,
        ("orders", 0, batch("eu/1", "us/1", at_ms=now_ms)),
        ("orders", 1, batch("eu/1", "eu/2", at_ms=now_ms)),
    )
    assert isinstance(answers[0].error, AccessDenied)
    assert answers[1].error is None
    assert not await stored(door)
    [null] = await produce(door, session, ("orders", 0, batch(None, at_ms=now_ms)))
    assert isinstance(null.error, AccessDenied)


async def test_batches_of_a_writer_of_some_keys_are_found_by_key(door: Any, now_ms: int) -> None:
    await produce(door, await door.session("eu-writer"), ("orders", 0, batch("eu/1", at_ms=now_ms)))
    assert (await door.engine.find_latest("orders", 0, b"eu/1")) is not None
    assert (await door.engine.find_latest("orders", 0, b"eu/2")) is None


async def test_a_numbered_batch_is_stored_once(door: Any, now_ms: int) -> None:
    session = await door.session("publisher")
    numbered = batch("a", at_ms=now_ms, producer_id=7, producer_epoch=0, base_sequence=0)
    both = await asyncio.gather(*[produce(door, session, ("orders", 0, numbered)) for _ in range(2)])
    [later] = await produce(door, session, ("orders", 0, numbered))
    assert [(one.error, one.base_offset) for [one] in both] + [(later.error, later.base_offset)] == [(None, 0)] * 3
    assert len(await stored(door)) == 1
    skipped = batch("a", at_ms=now_ms, producer_id=7, producer_epoch=0, base_sequence=2)
    [out_of_order] = await produce(door, session, ("orders", 0, skipped))
    assert isinstance(out_of_order.error, OutOfOrderSequence)


async def test_a_numbered_batch_whose_connection_goes_is_settled_all_the_same(door: Any, now_ms: int) -> None:
    session = await door.session("publisher")
    numbered = batch("a", at_ms=now_ms, producer_id=7, producer_epoch=0, base_sequence=0)
    under_way = asyncio.create_task(produce(door, session, ("orders", 0, numbered)))
    await asyncio.sleep(0)
    under_way.cancel()
    [again] = await produce(door, session, ("orders", 0, numbered))
    assert (again.error, again.base_offset) == (None, 0)
    assert len(await stored(door)) == 1


async def test_where_the_node_dates_records_it_says_when(door: Any) -> None:
    await door.engine.create_topic("dated", 1, {"message.timestamp.type": "LogAppendTime"})
    session = await door.session("publisher")
    [answer] = await produce(door, session, ("dated", 0, batch("a", "b", at_ms=5)))
    [data] = await stored(door, "dated")
    assert read_header(data).is_log_append_time
    assert {record.timestamp_ms for record in walk(data)} == {answer.append_time_ms}
    assert abs(answer.append_time_ms - door.clock.now_ms()) < 60_000


async def test_acks_none_does_not_wait(door: Any, now_ms: int) -> None:
    session = await door.session("publisher")
    [answer] = await asyncio.wait_for(produce(door, session, ("orders", 0, batch("a", at_ms=now_ms)), durable=False), 5)
    assert answer.error is None
    fetched = await door.engine.fetch("orders", 0, 0, bytes_max=1, wait_max_ms=5_000)
    assert len(fetched.batches) == 1


async def test_the_bounds_of_a_request(open_door: Any) -> None:
    door = open_door(pipeline=PipelineOptions(publishes_max=0))
    with pytest.raises(Busy):
        await produce(door, await door.session())
    door = open_door(quotas={"bytes_in": RateLimit(1, 10)})
    session = await door.session()
    await door.engine.create_topic("orders", 1, {})
    data = batch("a", at_ms=door.clock.now_ms())
    await produce(door, session, ("orders", 0, data))
    with pytest.raises(QuotaExceeded):
        await produce(door, session, ("orders", 0, data))
    assert len(await stored(door)) == 1


async def test_a_revoked_token_ends_the_request(door: Any, now_ms: int) -> None:
    token = door.token("publisher")
    session = await door.session(token=token)
    door.revoke(token)
    with pytest.raises(TokenRevoked):
        await produce(door, session, ("orders", 0, batch("a", at_ms=now_ms)))


# What was found out for an earlier request is not believed when anything of it has changed


async def test_a_token_revoked_between_requests_is_noticed(door: Any, now_ms: int) -> None:
    token = door.token("publisher")
    session = await door.session(token=token)
    assert (await produce(door, session, ("orders", 0, batch("a", at_ms=now_ms))))[0].error is None
    door.revoke(token)
    with pytest.raises(TokenRevoked):
        await produce(door, session, ("orders", 0, batch("b", at_ms=now_ms)))
    assert len(await stored(door)) == 1


async def test_a_token_that_expires_between_requests_is_noticed(door: Any, now_ms: int) -> None:
    session = await door.session("publisher", ttl_ms=1_000)
    assert (await produce(door, session, ("orders", 0, batch("a", at_ms=now_ms))))[0].error is None
    door.clock.ahead_ms += 1_000
    with pytest.raises(TokenExpired):
        await produce(door, session, ("orders", 0, batch("b", at_ms=now_ms)))
    assert len(await stored(door)) == 1


async def test_a_changed_policy_is_noticed(door: Any, now_ms: int) -> None:
    door.grant({"writer": [{"actions": ["publish"], "topic": "orders"}]})
    session = await door.session("writer")
    assert (await produce(door, session, ("orders", 0, batch("a", at_ms=now_ms))))[0].error is None
    door.grant({"writer": [{"actions": ["publish"], "topic": "readings"}]})
    [refused] = await produce(door, session, ("orders", 0, batch("b", at_ms=now_ms)))
    assert isinstance(refused.error, AccessDenied)
    assert len(await stored(door)) == 1


async def test_a_topic_that_was_made_again_or_altered_is_noticed(door: Any, now_ms: int) -> None:
    session = await door.session("publisher")
    assert (await produce(door, session, ("orders", 1, batch("a", at_ms=now_ms))))[0].error is None
    await door.pipeline.broker.delete_topic("orders")
    [gone] = await produce(door, session, ("orders", 1, batch("b", at_ms=now_ms)))
    assert isinstance(gone.error, UnknownTopic)
    await door.engine.create_topic("orders", 1, {})
    [fewer] = await produce(door, session, ("orders", 1, batch("b", at_ms=now_ms)))
    assert isinstance(fewer.error, UnknownPartition)
    [again] = await produce(door, session, ("orders", 0, batch("b", at_ms=now_ms)))
    assert (again.error, again.base_offset) == (None, 0)
    await door.engine.alter_topic("orders", configs={"max.message.bytes": "70"})
    [altered] = await produce(door, session, ("orders", 0, batch("b" * 100, at_ms=now_ms)))
    assert isinstance(altered.error, BatchTooLarge)


async def test_sessions_do_not_share_what_was_found_out(door: Any, now_ms: int) -> None:
    allowed, stranger = await door.session("publisher"), await door.session("subscriber")
    for session, refused in ((allowed, type(None)), (stranger, AccessDenied), (allowed, type(None))):
        [answer] = await produce(door, session, ("orders", 0, batch("a", at_ms=now_ms)))
        assert type(answer.error) is refused


async def test_what_is_kept_of_sessions_and_topics_is_bounded(door: Any, now_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.producing.WAYS_MAX", 2)
    for _ in range(5):
        session = await door.session("publisher")
        assert (await produce(door, session, ("orders", 0, batch("a", at_ms=now_ms))))[0].error is None
        assert len(door.pipeline.producing._ways) <= 2


# Whoever asked may be gone


async def test_what_is_stored_is_audited_whoever_is_still_there(door: Any, now_ms: int) -> None:
    session = await door.session("publisher")
    under_way = asyncio.create_task(produce(door, session, ("orders", 0, batch("a", at_ms=now_ms))))
    await asyncio.sleep(0)
    under_way.cancel()
    await door.until(lambda: [entry[2:5] for entry in door.audited if entry[0] == "access"] == [("publish", "orders", "allowed")])
    assert door.count("records_in_total", protocol="rest") == 1
    assert len(await stored(door)) == 1


async def test_a_mistake_after_the_append_reaches_whoever_asked(door: Any, now_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a mistake")

    session = await door.session("publisher")
    monkeypatch.setattr(door.pipeline, "audit", broken)
    with pytest.raises(RuntimeError):
        await produce(door, session, ("orders", 0, batch("a", at_ms=now_ms)))
    monkeypatch.undo()
    [answer] = await produce(door, session, ("orders", 0, batch("b", at_ms=now_ms)))
    assert (answer.error, answer.base_offset) == (None, 1)


# Batches that take long to open


async def test_more_records_than_a_batch_may_have(open_door: Any) -> None:
    door = open_door(pipeline=PipelineOptions(batch_records_max=2))
    await door.engine.create_topic("orders", 1, {})
    now_ms, session = door.clock.now_ms(), await door.session()
    [two] = await produce(door, session, ("orders", 0, batch("a", "b", at_ms=now_ms)))
    [three] = await produce(door, session, ("orders", 0, batch("a", "b", "c", at_ms=now_ms)))
    assert two.error is None
    assert isinstance(three.error, TooManyRecords)
    assert "pipeline.batch_records_max" in str(three.error)


async def test_they_are_opened_beside_the_event_loop(door: Any, now_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    await door.engine.create_topic("compacted", 1, {"cleanup.policy": "compact"})
    session, threads = await door.session("publisher"), []

    def noting(data: Any) -> list[bytes | None]:
        threads.append(threading.get_ident() == here)
        return keys(data)

    here = threading.get_ident()
    monkeypatch.setattr("broker.produced.keys", noting)
    many = build([(now_ms, b"%d" % number, b"v", ()) for number in range(OPENED_AT_ONCE_MAX + 1)])
    few = build([(now_ms, b"k", b"v", ())])
    keyless = batch("a", None, at_ms=now_ms)
    answers = [(await produce(door, session, ("compacted", 0, one)))[0] for one in (few, many, batch("a", at_ms=now_ms), keyless)]
    assert threads == [True, False, False, False]
    assert [type(one.error) for one in answers] == [type(None)] * 3 + [IllegalBatch]
    assert [one.base_offset for one in answers] == [0, 1, 1 + OPENED_AT_ONCE_MAX + 1, -1]
