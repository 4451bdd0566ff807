"""Producer ids and transactions over the wire: codes, versions, rights."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from broker.batch import build, read_header
from broker.batch_header import HEADER_BYTES, TRANSACTIONAL, assemble

NONE, UNKNOWN_TOPIC, TOPIC_DENIED, GROUP_DENIED, CLUSTER_DENIED, ID_DENIED = 0, 3, 29, 30, 31, 53
OUT_OF_ORDER, INVALID_EPOCH, INVALID_STATE, INVALID_MAPPING, INVALID_TIMEOUT, NOT_ATTEMPTED = 45, 47, 48, 49, 50, 55
INVALID_REQUEST, FENCED, UNKNOWN_ID, ILLEGAL_GENERATION, METADATA_TOO_LARGE = 42, 90, 105, 22, 12
ABORTABLE = 120

Producer = tuple[int, int]


def numbered(producer: Producer, sequence: int, *values: bytes, transactional: bool = True) -> bytes:
    batch = build(
        [(1_700_000_000_000, b"eu/1", value, ()) for value in values],
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=sequence,
    )
    header = msgspec.structs.replace(read_header(batch), attributes=TRANSACTIONAL if transactional else 0)
    return assemble(header, batch[HEADER_BYTES:])


class Caller:
    """A connection with the calls of these tests."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def init(self, id: str | None, version: int = 4, timeout_ms: int = 60_000, **more: Any) -> Any:
        return await self.client.call(22, version, transactional_id=id, transaction_timeout=timeout_ms, **more)

    async def begin(self, id: str) -> Producer:
        answer = await self.init(id)
        assert answer.error_code == NONE
        return answer.producer_id, answer.producer_epoch

    async def add(self, id: str, producer: Producer, *partitions: int, version: int = 3, topic: str = "orders") -> list[int]:
        answer = await self.client.call(
            24,
            version,
            v3_and_below_transactional_id=id,
            v3_and_below_producer_id=producer[0],
            v3_and_below_producer_epoch=producer[1],
            v3_and_below_topics=[{"name": topic, "partitions": partitions}],
        )
        return [one.partition_error_code for one in answer.results_by_topic_v3_and_below[0].results_by_partition]

    async def produce(self, batch: bytes, partition: int = 0, id: str | None = None, version: int = 9) -> tuple[int, int]:
        """Code and base offset."""
        partitions = [{"index": partition, "records": batch}]
        answer = await self.client.call(
            0,
            version,
            transactional_id=id,
            acks=-1,
            timeout=10_000,
            topic_data=[{"name": "orders", "partition_data": partitions}],
        )
        one = answer.responses[0].partition_responses[0]
        return one.error_code, one.base_offset

    async def end(self, id: str, producer: Producer, *, commit: bool = True, version: int = 3) -> Any:
        return await self.client.call(
            26, version, transactional_id=id, producer_id=producer[0], producer_epoch=producer[1], committed=commit
        )

    async def add_offsets(self, id: str, producer: Producer, group: str, version: int = 3) -> int:
        answer = await self.client.call(
            25, version, transactional_id=id, producer_id=producer[0], producer_epoch=producer[1], group_id=group
        )
        return int(answer.error_code)

    async def commit_offset(
        self, id: str, producer: Producer, group: str, offset: int, version: int = 3, partition: int = 0, **more: Any
    ) -> int:
        metadata = more.pop("metadata", "m")
        if version >= 3:
            more = {"generation_id": -1, "member_id": "", "group_instance_id": None, **more}
        place = {"partition_index": partition, "committed_offset": offset, "committed_metadata": metadata}
        answer = await self.client.call(
            28,
            version,
            transactional_id=id,
            group_id=group,
            producer_id=producer[0],
            producer_epoch=producer[1],
            topics=[{"name": "orders", "partitions": [place]}],
            **more,
        )
        return int(answer.topics[0].partitions[0].error_code)

    async def committed(self, group: str) -> tuple[int, str]:
        answer = await self.client.call(
            9, 7, group_id=group, topics=[{"name": "orders", "partition_indexes": [0]}], require_stable=False
        )
        one = answer.topics[0].partitions[0]
        return one.committed_offset, one.metadata


@pytest.fixture
async def caller(kafka: Any) -> Caller:
    client = await kafka.client()
    await client.call(19, 7, topics=[{"name": "orders", "num_partitions": 2, "replication_factor": 1}], timeout=1000)
    return Caller(client)


async def read(kafka: Any, partition: int = 0) -> list[bytes]:
    """As REST reads it."""
    page = await kafka.node.broker.fetch("orders", partition, 0, records_max=100, bytes_max=1 << 20, wait_max_ms=0)
    return [record.value for record in page.records]


@pytest.mark.parametrize("version", range(6))
async def test_producer_ids(caller: Caller, version: int) -> None:
    first, second = await caller.init(None, version), await caller.init(None, version)
    assert (first.error_code, first.producer_epoch) == (NONE, 0)
    assert second.producer_id > first.producer_id


async def test_a_batch_is_stored_once(caller: Caller, kafka: Any) -> None:
    answer = await caller.init(None)
    producer = answer.producer_id, answer.producer_epoch
    for _ in range(3):
        assert await caller.produce(numbered(producer, 0, b"a", b"b", transactional=False)) == (NONE, 0)
    assert await caller.produce(numbered(producer, 2, b"c", transactional=False)) == (NONE, 2)
    assert (await caller.produce(numbered(producer, 9, b"x", transactional=False)))[0] == OUT_OF_ORDER
    assert (await caller.produce(numbered((producer[0], 1), 0, b"d", transactional=False)))[0] == NONE
    assert (await caller.produce(numbered(producer, 3, b"x", transactional=False)))[0] == INVALID_EPOCH
    assert await read(kafka) == [b"a", b"b", b"c", b"d"]


async def test_a_transaction(caller: Caller, kafka: Any) -> None:
    producer = await caller.begin("t")
    assert await caller.add("t", producer, 0, 1) == [NONE, NONE]
    assert await caller.produce(numbered(producer, 0, b"a"), id="t") == (NONE, 0)
    assert await caller.produce(numbered(producer, 0, b"b"), 1, id="t") == (NONE, 0)
    assert await caller.add_offsets("t", producer, "g") == NONE
    assert await caller.commit_offset("t", producer, "g", 7) == NONE
    assert (await read(kafka), await caller.committed("g")) == ([], (-1, ""))
    assert (await caller.end("t", producer)).error_code == NONE
    assert (await read(kafka), await read(kafka, 1), await caller.committed("g")) == ([b"a"], [b"b"], (7, "m"))


async def test_what_is_aborted_leaves_nothing(caller: Caller, kafka: Any) -> None:
    producer = await caller.begin("t")
    await caller.add("t", producer, 0)
    await caller.produce(numbered(producer, 0, b"a"), id="t")
    await caller.add_offsets("t", producer, "g")
    await caller.commit_offset("t", producer, "g", 7)
    assert (await caller.end("t", producer, commit=False)).error_code == NONE
    assert (await read(kafka), await caller.committed("g")) == ([], (-1, ""))


@pytest.mark.parametrize("isolation", [0, 1])
async def test_fetch_tells_what_was_aborted(caller: Caller, isolation: int) -> None:
    producer = await caller.begin("t")
    await caller.add("t", producer, 0)
    await caller.produce(numbered(producer, 0, b"a"), id="t")
    fetch: dict[str, Any] = {"replica_id": -1, "max_wait": 0, "min_bytes": 1, "max_bytes": 1 << 20, "isolation_level": isolation}
    fetch |= {"session_id": 0, "session_epoch": -1, "forgotten_topics_data": [], "rack_id": ""}
    place = {"partition": 0, "current_leader_epoch": -1, "fetch_offset": 0, "log_start_offset": -1}
    topics = [{"topic": "orders", "partitions": [{**place, "partition_max_bytes": 1 << 20, "last_fetched_epoch": -1}]}]
    one = (await caller.client.call(1, 12, **fetch, topics=topics)).responses[0].partitions[0]
    assert (one.high_watermark, one.last_stable_offset) == (1, 0)
    assert bool(one.records) is (isolation == 0)
    await caller.end("t", producer, commit=False)
    one = (await caller.client.call(1, 12, **fetch, topics=topics)).responses[0].partitions[0]
    assert (one.high_watermark, one.last_stable_offset) == (2, 2)
    told = [(aborted.producer_id, aborted.first_offset) for aborted in one.aborted_transactions or ()]
    assert told == ([(producer[0], 0)] if isolation else [])


async def test_partitions_join_with_produce_12_and_epochs_grow_with_end_5(caller: Caller, kafka: Any) -> None:
    producer = await caller.begin("t")
    assert await caller.produce(numbered(producer, 0, b"a"), id="t", version=12) == (NONE, 0)
    assert await caller.commit_offset("t", producer, "g", 3, version=5) == NONE
    answer = await caller.end("t", producer, version=5)
    assert (answer.error_code, answer.producer_id, answer.producer_epoch) == (NONE, producer[0], producer[1] + 1)
    assert (await read(kafka), await caller.committed("g")) == ([b"a"], (3, "m"))
    assert (await caller.produce(numbered(producer, 1, b"x"), id="t", version=12))[0] == INVALID_EPOCH


@pytest.mark.parametrize(("version", "code"), [(0, INVALID_EPOCH), (1, INVALID_EPOCH), (2, FENCED), (3, FENCED)])
async def test_who_is_fenced_hears_it_in_words_of_its_version(caller: Caller, version: int, code: int) -> None:
    old = await caller.begin("t")
    await caller.begin("t")
    assert await caller.add("t", old, 0, version=version) == [code]
    assert await caller.add_offsets("t", old, "g", version=version) == code
    assert (await caller.end("t", old, version=version)).error_code == code
    assert await caller.commit_offset("t", old, "g", 1, version=version) == INVALID_EPOCH


async def test_refusals_of_the_coordinator(caller: Caller) -> None:
    producer = await caller.begin("t")
    assert (await caller.init("t", timeout_ms=0)).error_code == INVALID_TIMEOUT
    assert (await caller.init("t", timeout_ms=900_001)).error_code == INVALID_TIMEOUT
    assert (await caller.init("")).error_code == INVALID_REQUEST
    assert (await caller.init("t", producer_id=4, producer_epoch=-1)).error_code == INVALID_REQUEST
    assert (await caller.init("t", producer_id=producer[0] + 1, producer_epoch=0)).error_code == FENCED
    assert await caller.add("nobody", producer, 0) == [INVALID_MAPPING]
    assert await caller.add("t", producer, 0, 2) == [NOT_ATTEMPTED, UNKNOWN_TOPIC]
    assert (await caller.end("t", producer)).error_code == INVALID_STATE
    assert (await caller.produce(numbered(producer, 0, b"x"), id="t"))[0] == INVALID_STATE
    assert await caller.commit_offset("t", producer, "g", 1) == INVALID_STATE
    assert await caller.commit_offset("t", producer, "g", 1, version=4) == ABORTABLE
    assert await caller.add_offsets("t", producer, "g") == NONE
    assert await caller.commit_offset("t", producer, "g", 1, partition=9) == UNKNOWN_TOPIC
    assert await caller.commit_offset("t", producer, "g", 1, metadata="x" * 5_000) == METADATA_TOO_LARGE
    assert await caller.commit_offset("t", producer, "new", 1, generation_id=3, member_id="m") == ILLEGAL_GENERATION


async def test_rights(caller: Caller, kafka: Any) -> None:
    producer = await caller.begin("t")
    await caller.add("t", producer, 0)
    nobody, some = Caller(await kafka.client(kafka.token("none"))), Caller(await kafka.client(kafka.token("some-keys")))
    assert (await nobody.init(None)).error_code == CLUSTER_DENIED
    assert (await some.init(None)).error_code == NONE
    for other in nobody, some:
        assert (await other.init("t")).error_code == ID_DENIED
        assert await other.add("t", producer, 0) == [ID_DENIED]
        assert await other.add_offsets("t", producer, "g") == ID_DENIED
        assert await other.commit_offset("t", producer, "g", 1) == ID_DENIED
        assert (await other.end("t", producer)).error_code == ID_DENIED
        assert (await other.produce(numbered(producer, 0, b"x"), id="t"))[0] == ID_DENIED
        assert (await other.client.call(65, 0, transactional_ids=["t"])).transaction_states[0].error_code == ID_DENIED
        assert (await other.client.call(66, 0, state_filters=[], producer_id_filters=[])).transaction_states == ()
    every = Caller(await kafka.client(kafka.token("all")))
    assert await every.add("t", producer, 1) == [NONE]


async def test_rights_come_before_existence(kafka: Any, caller: Caller) -> None:
    producer = await caller.begin("t")
    only = Caller(await kafka.client(kafka.token("all", scopes=["publish:orders", "transaction:*"])))
    assert await only.add("t", producer, 0, topic="secret") == [TOPIC_DENIED]
    assert await only.add("t", producer, 0) == [NONE]
    assert await only.add_offsets("t", producer, "g") == GROUP_DENIED


async def test_what_administrators_see(caller: Caller) -> None:
    producer = await caller.begin("t")
    await caller.begin("idle")
    await caller.add("t", producer, 1)
    await caller.produce(numbered(producer, 0, b"a", b"b"), 1, id="t")
    open_one, unknown = (await caller.client.call(65, 0, transactional_ids=["t", "nobody"])).transaction_states
    assert (open_one.error_code, open_one.transaction_state, open_one.producer_id) == (NONE, "Ongoing", producer[0])
    assert [(one.topic, one.partitions) for one in open_one.topics] == [("orders", (1,))]
    assert open_one.transaction_timeout.total_seconds() == 60
    assert unknown.error_code == UNKNOWN_ID
    (found,) = (await caller.client.call(61, 0, topics=[{"name": "orders", "partition_indexes": [1]}])).topics[0].partitions
    (active,) = found.active_producers
    assert (active.producer_id, active.producer_epoch, active.last_sequence) == (*producer, 1)
    assert active.current_txn_start_offset == 0
    (missing,) = (await caller.client.call(61, 0, topics=[{"name": "orders", "partition_indexes": [9]}])).topics[0].partitions
    assert missing.error_code == UNKNOWN_TOPIC


@pytest.mark.parametrize(
    ("version", "asked", "found"),
    [
        (0, {}, {"t", "idle"}),
        (0, {"state_filters": ["Ongoing"]}, {"t"}),
        (0, {"state_filters": ["Dead"]}, set()),
        (0, {"state_filters": ["Nonsense"]}, set()),
        (0, {"producer_id_filters": [77]}, set()),
        (1, {"duration_filter": 0}, {"t", "idle"}),
        (1, {"duration_filter": 3_600_000}, {"idle"}),  # which never began
        (2, {"duration_filter": -1, "transactional_id_pattern": "i.*"}, {"idle"}),
        (2, {"duration_filter": -1, "transactional_id_pattern": None}, {"t", "idle"}),
    ],
)
async def test_listing(caller: Caller, version: int, asked: dict[str, Any], found: set[str]) -> None:
    await caller.begin("idle")
    await caller.add("t", await caller.begin("t"), 0)
    await asyncio.sleep(0.002)  # longer ago than 0 ms
    answer = await caller.client.call(66, version, **{"state_filters": [], "producer_id_filters": []} | asked)
    assert {one.transactional_id for one in answer.transaction_states} == found
    assert answer.unknown_state_filters == (("Nonsense",) if asked.get("state_filters") == ["Nonsense"] else ())


@pytest.mark.parametrize("pattern", ["(", "a" * 1_025, "((a{100}){100}){100}"])
async def test_a_pattern_that_is_none(caller: Caller, pattern: str) -> None:
    asked = {"state_filters": [], "producer_id_filters": [], "duration_filter": -1, "transactional_id_pattern": pattern}
    assert (await caller.client.call(66, 2, **asked)).error_code == 128
