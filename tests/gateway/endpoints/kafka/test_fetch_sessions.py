"""Fetch sessions (KIP-227) on the wire of a whole node: what is left out and refused, whose they are, how many there may be."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from broker.batch import split, walk
from gateway.endpoints.kafka.fetch_sessions import (
    EPOCH_MAX,
    EVICTION_MS,
    FetchSessions,
    Followed,
    Followers,
    SessionRefused,
    next_epoch,
)
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.rbac import policy_from_mapping
from tests.gateway.endpoints.kafka.conftest import ROLES
from tests.gateway.endpoints.kafka.test_produce_fetch import batch, create, produce, topic_id

FETCH, DELETE_TOPICS, DELETE_RECORDS = 1, 20, 21
NAMED, BY_ID = 12, 17


class Reader:
    """A consumer with a session on one connection: names its partitions once, then what has changed."""

    def __init__(self, client: Any, version: int = NAMED) -> None:
        self.client, self.version = client, version
        self.session_id, self.epoch = 0, 0
        self.topic: Any = None

    async def poll(self, offsets: dict[int, int] | None = None, *, forget: tuple[int, ...] = (), **more: Any) -> Any:
        if self.topic is None:
            self.topic = {"topic": "orders"} if self.version <= NAMED else {"topic_id": await topic_id(self.client)}
        partitions = [{"partition": n, "fetch_offset": at, "partition_max_bytes": 1 << 20} for n, at in (offsets or {}).items()]
        fields: dict[str, Any] = {"max_wait": 0, "min_bytes": 1, "max_bytes": 1 << 20}
        fields |= {"session_id": self.session_id, "session_epoch": self.epoch}
        if forget:
            fields["forgotten_topics_data"] = [{**self.topic, "partitions": list(forget)}]
        topics = [{**self.topic, "partitions": partitions}] if partitions else []
        answer = await self.client.call(FETCH, self.version, **(fields | {"topics": topics} | more))
        if answer.error_code == 0:
            self.session_id, self.epoch = answer.session_id, self.epoch + 1
        return answer


def told(answer: Any) -> list[tuple[int, int]]:
    """Partitions and how many records of each, in the order of the answer."""
    return [
        (one.partition_index, sum(len(list(walk(part))) for part in split(one.records or b"")))
        for topic in answer.responses
        for one in topic.partitions
    ]


def errors(answer: Any) -> list[int]:
    return [int(one.error_code) for topic in answer.responses for one in topic.partitions]


async def until_none(kafka: Any) -> None:
    """A connection's end is seen a moment later."""
    async with asyncio.timeout(10):
        while kafka.count("kafka_fetch_sessions_open"):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)


@pytest.fixture
async def reader(kafka: Any) -> Reader:
    await create(kafka, partitions=4)
    return Reader(await kafka.client())


@pytest.mark.parametrize("version", [7, 11, NAMED, 13, BY_ID, 18])
async def test_an_answer_says_what_is_new(kafka: Any, version: int) -> None:
    producer = await create(kafka, partitions=4)
    reader = Reader(await kafka.client(), version)
    await produce(producer, batch("a", "b"), 1)
    assert told(await reader.poll({0: 0, 1: 0, 2: 0})) == [(0, 0), (1, 2), (2, 0)]
    assert reader.session_id > 0
    assert told(await reader.poll({1: 2})) == []
    assert told(await reader.poll()) == []
    await produce(producer, batch("c"), 2)
    await produce(producer, batch("d"), 1)
    assert sorted(told(await reader.poll())) == [(1, 1), (2, 1)]
    assert told(await reader.poll({1: 3, 2: 1})) == []


async def test_what_was_not_taken_comes_again(reader: Reader) -> None:
    await produce(reader.client, batch("a"))
    for _ in range(2):
        assert told(await reader.poll({0: 0} if reader.epoch == 0 else None)) == [(0, 1)]


async def test_partitions_are_added_moved_and_forgotten(kafka: Any) -> None:
    for version in (NAMED, BY_ID):
        producer = await (create(kafka, partitions=4) if version == NAMED else kafka.client())
        reader = Reader(await kafka.client(), version)
        await produce(producer, batch("a"), 3)
        await reader.poll({0: 0, 1: 0})
        assert [number for number, _ in told(await reader.poll({3: 0}))] == [3]
        assert told(await reader.poll(forget=(3,))) == []
        end = (await reader.poll({3: 0})).responses[0].partitions[0].high_watermark
        assert told(await reader.poll({3: end, 0: 0}, forget=(1,))) == []
        assert reader.session_id
        last = await reader.poll(forget=(0, 3))
        assert (last.error_code, last.session_id, last.responses) == (0, 0, ())  # it follows nothing: that was its end
        assert kafka.count("kafka_fetch_sessions_open") == 0


async def test_an_end_or_a_beginning_that_moved_is_told(reader: Reader) -> None:
    await produce(reader.client, batch("a"))
    await reader.poll({0: 0, 1: 0})
    await reader.poll({0: 1})
    deleted = [{"name": "orders", "partitions": [{"partition_index": 0, "offset": 1}]}]
    await reader.client.call(DELETE_RECORDS, 2, topics=deleted, timeout=1_000)
    [topic] = (await reader.poll()).responses
    assert [(one.partition_index, one.log_start_offset, one.high_watermark) for one in topic.partitions] == [(0, 1, 1)]
    assert told(await reader.poll()) == []


async def test_a_refusal_is_told_each_time_and_the_partition_when_it_is_over(reader: Reader) -> None:
    assert errors(await reader.poll({0: 5, 1: 0})) == [ErrorCode.OFFSET_OUT_OF_RANGE, 0]
    for _ in range(2):
        assert errors(await reader.poll()) == [ErrorCode.OFFSET_OUT_OF_RANGE]
    assert errors(await reader.poll({0: 0})) == [0]
    assert told(await reader.poll()) == []


async def test_partitions_with_records_let_the_others_go_first_the_next_time(reader: Reader) -> None:
    for number in range(3):
        for _ in range(3):
            await produce(reader.client, batch("a"), number)
    served = [told(await reader.poll({0: 0, 1: 0, 2: 0}, max_bytes=1))]
    served += [told(await reader.poll(max_bytes=1)) for _ in range(3)]
    assert [[number for number, count in one if count] for one in served] == [[0], [1], [2], [0]]


async def test_a_session_waits(kafka: Any, reader: Reader) -> None:
    await reader.poll({0: 0, 1: 0})
    waiting = asyncio.create_task(reader.poll(max_wait=20_000))
    await asyncio.sleep(0.05)
    await produce(await kafka.client(), batch("a"), 1)
    assert told(await waiting) == [(1, 1)]


@pytest.mark.parametrize(
    ("id_more", "epoch", "code"),
    [
        (1, 1, ErrorCode.FETCH_SESSION_ID_NOT_FOUND),
        (-1, 1, ErrorCode.FETCH_SESSION_ID_NOT_FOUND),
        (0, 2, ErrorCode.INVALID_FETCH_SESSION_EPOCH),
        (0, EPOCH_MAX, ErrorCode.INVALID_FETCH_SESSION_EPOCH),
        (0, -2, ErrorCode.INVALID_FETCH_SESSION_EPOCH),
        (0, -(2**31), ErrorCode.INVALID_FETCH_SESSION_EPOCH),
        (-(2**31), 1, ErrorCode.FETCH_SESSION_ID_NOT_FOUND),
    ],
)
async def test_an_id_and_an_epoch_that_do_not_fit(reader: Reader, id_more: int, epoch: int, code: int) -> None:
    await reader.poll({0: 0})
    fields: dict[str, Any] = {"session_id": max(-(2**31), min(EPOCH_MAX, reader.session_id + id_more)), "session_epoch": epoch}
    refused = await reader.poll(**fields)
    assert (refused.error_code, refused.session_id, refused.responses) == (code, 0, ())
    assert (await reader.poll()).error_code == 0  # the session is as it was


async def test_an_epoch_that_was_used_already(reader: Reader) -> None:
    await reader.poll({0: 0})
    await reader.poll()
    assert (await reader.poll(session_epoch=1)).error_code == ErrorCode.INVALID_FETCH_SESSION_EPOCH


async def test_names_and_ids_do_not_mix(kafka: Any, reader: Reader) -> None:
    await reader.poll({0: 0})
    reader.version = BY_ID
    assert (await reader.poll()).error_code == ErrorCode.FETCH_SESSION_TOPIC_ID_ERROR


async def test_a_session_is_its_connections_alone(kafka: Any, reader: Reader) -> None:
    await produce(reader.client, batch("secret"))
    await reader.poll({0: 0})
    for token in (None, kafka.token("all"), kafka.token("none")):
        other = Reader(await kafka.client(token))
        other.session_id, other.epoch, other.topic = reader.session_id, reader.epoch, reader.topic
        assert (await other.poll()).error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND
        await other.poll(session_epoch=-1)  # nor does it end another's
    assert told(await reader.poll()) == [(0, 1)]


async def test_a_session_ends_with_its_connection(kafka: Any, reader: Reader) -> None:
    await reader.poll({0: 0, 1: 0})
    assert (kafka.count("kafka_fetch_sessions_open"), kafka.count("kafka_fetch_sessions_partitions")) == (1, 2)
    await reader.client.close()
    await until_none(kafka)
    assert kafka.count("kafka_fetch_sessions_partitions") == 0


async def test_a_session_ends_when_it_is_said_or_another_is_made(kafka: Any, reader: Reader) -> None:
    await reader.poll({0: 0})
    first = reader.session_id
    await reader.poll({0: 0, 1: 0}, session_epoch=0)
    assert reader.session_id not in (0, first)
    assert kafka.count("kafka_fetch_sessions_partitions") == 2
    assert told(await reader.poll({0: 0}, session_epoch=-1)) == [(0, 0)]
    assert kafka.count("kafka_fetch_sessions_open") == 0


async def test_rights_are_looked_at_in_each_request_and_after_each_wait(kafka: Any) -> None:
    producer = await create(kafka)
    reader = Reader(await kafka.client(kafka.token("all")))
    await reader.poll({0: 0})
    allowed = kafka.node.pipeline.policy.policy
    forbidden = policy_from_mapping({"roles": ROLES | {"all": ROLES["none"]}})
    for waits in (False, True):
        waiting = asyncio.create_task(reader.poll(max_wait=20_000 if waits else 0))
        if waits:
            await asyncio.sleep(0.05)
        else:
            assert told(await waiting) == []
        kafka.node.pipeline.policy.replace(forbidden)
        await produce(producer, batch("secret"))
        answer = await (waiting if waits else reader.poll())
        assert errors(answer) == [ErrorCode.TOPIC_AUTHORIZATION_FAILED]
        [refused] = answer.responses[0].partitions
        assert (refused.high_watermark, refused.records or b"") == (-1, b"")
        kafka.node.pipeline.policy.replace(allowed)
        assert told(await reader.poll()) == [(0, 1)]
        await reader.poll({0: 1 + waits})


@pytest.mark.parametrize(
    ("version", "code"), [(NAMED, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION), (BY_ID, ErrorCode.UNKNOWN_TOPIC_ID)]
)
async def test_a_topic_that_goes_and_is_made_again(kafka: Any, version: int, code: int) -> None:
    admin = await create(kafka)
    reader = Reader(await kafka.client(), version)
    await reader.poll({0: 0})
    waiting = asyncio.create_task(reader.poll(max_wait=20_000))
    await asyncio.sleep(0.05)
    await admin.call(DELETE_TOPICS, 5, topic_names=["orders"], timeout=1_000)
    assert errors(await waiting) == [code]
    await create(kafka)
    await produce(admin, batch("new"))
    again = await reader.poll()
    assert (errors(again), told(again)) == (([0], [(0, 1)]) if version == NAMED else ([code], [(0, 0)]))


async def test_a_topic_id_that_is_nobodys(reader: Reader) -> None:
    reader.version = BY_ID
    reader.topic = {"topic_id": UUID(int=7)}
    assert errors(await reader.poll({0: 0})) == [ErrorCode.UNKNOWN_TOPIC_ID]


class TestBounds:
    async def test_a_client_without_a_session_names_everything(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__fetch_sessions_max=1)
        await create(kafka)
        first, second = Reader(await kafka.client()), Reader(await kafka.client())
        assert (await first.poll({0: 0})).session_id > 0
        assert (await second.poll({0: 0})).session_id == 0
        assert told(await second.poll({0: 0}, session_epoch=0)) == [(0, 0)]
        assert (await first.poll()).error_code == 0
        await first.client.close()
        await until_none(kafka)
        assert (await second.poll({0: 0}, session_epoch=0)).session_id > 0

    async def test_there_may_be_none(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__fetch_sessions_max=0)
        await create(kafka)
        assert (await Reader(await kafka.client()).poll({0: 0})).session_id == 0

    async def test_partitions_of_all_together(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__fetch_session_partitions_max=3)
        await create(kafka, partitions=4)
        first, second = Reader(await kafka.client()), Reader(await kafka.client())
        await first.poll({0: 0, 1: 0})
        assert (await second.poll({0: 0, 1: 0})).session_id == 0
        assert (await first.poll({2: 0})).error_code == 0
        assert (await first.poll({3: 0})).error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND
        assert kafka.count("kafka_fetch_sessions_open") == 0

    async def test_bytes_of_one_answer(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__fetch_bytes_max=1_000)
        producer = await create(kafka)
        for _ in range(30):
            await produce(producer, batch("a"))
        answer = await Reader(producer).poll({0: 0, 1: 0})
        assert 0 < len(answer.responses[0].partitions[0].records) <= 1_000


def followers(count: int) -> Followers:
    return {("orders", number): Followed("orders", number, 0, 1, ref="orders") for number in range(count)}


class TestRoom:
    """Who goes where there is none, as FetchSessionCache of Kafka 4.3 has it."""

    def setup_method(self) -> None:
        self.now_ms = 1_000
        self.sessions = FetchSessions(2, 1_000, lambda: self.now_ms)

    def make(self, owner: str, count: int = 2) -> Any:
        return self.sessions.make(owner, "user:a", False, followers(count))

    def test_one_that_is_not_used(self) -> None:
        first, second = self.make("a"), self.make("b")
        self.now_ms += EVICTION_MS
        assert self.make("c", 9) is None  # nobody has been idle for longer than that
        self.sessions.change("b", second, {}, ())
        self.now_ms += 1
        assert self.make("c", 1) is not None
        with pytest.raises(SessionRefused):
            self.sessions.find("a", "user:a", False, first.id, 1)
        assert self.sessions.find("b", "user:a", False, second.id, 2) is second
        assert (self.sessions.counts().evictions, self.sessions.counts().partitions) == (1, 3)

    def test_a_smaller_one_that_is_no_longer_young(self) -> None:
        first, second = self.make("a", 5), self.make("b", 3)
        self.now_ms += EVICTION_MS + 1
        for owner, session in (("a", first), ("b", second)):
            self.sessions.change(owner, session, {}, ())
        assert self.make("c", 3) is None
        assert self.make("c", 4) is not None
        assert self.sessions.counts().partitions == 9
        assert self.make("d", 6) is not None  # the next is as large as that, and "c" is young
        assert self.make("e", 9) is None

    def test_ids_are_never_zero_and_differ(self) -> None:
        sessions = FetchSessions(1_000, 10_000, lambda: 0)
        ids = {sessions.make(number, "user:a", False, followers(1)).id for number in range(1_000)}  # type: ignore[union-attr]
        assert len(ids) > 990
        assert all(0 < id <= EPOCH_MAX for id in ids)

    def test_another_principal_on_the_connection(self) -> None:
        session = self.make("a")
        with pytest.raises(SessionRefused) as refused:
            self.sessions.find("a", "user:b", False, session.id, 1)
        assert refused.value.code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND

    def test_a_request_while_another_of_the_session_waits(self) -> None:
        session = self.make("a")
        session.busy = True
        with pytest.raises(SessionRefused) as refused:
            self.sessions.find("a", "user:a", False, session.id, 1)
        assert refused.value.code == ErrorCode.INVALID_FETCH_SESSION_EPOCH


def test_epochs_begin_again_at_one() -> None:
    assert [next_epoch(epoch) for epoch in (0, 1, EPOCH_MAX - 1, EPOCH_MAX)] == [1, 2, EPOCH_MAX, 1]
