"""Groups of Kafka clients, call by call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.app import Node
from tests.gateway.endpoints.kafka.conftest import RawClient

TOPIC = {"name": "orders", "num_partitions": 2, "replication_factor": 1}
UNKNOWN_TOPIC, METADATA_TOO_LARGE = 3, 12
ILLEGAL_GENERATION, INCONSISTENT_PROTOCOL, INVALID_GROUP, UNKNOWN_MEMBER, INVALID_SESSION, REBALANCING = 22, 23, 24, 25, 26, 27
TOPIC_DENIED, GROUP_DENIED, INVALID_REQUEST, TRANSACTION_DENIED = 29, 30, 42, 53
NOT_EMPTY, NOT_FOUND, ID_REQUIRED, FENCED, SUBSCRIBED, UNKNOWN_ID = 68, 69, 79, 82, 86, 100


@pytest.fixture
async def kafka(open_kafka: Any) -> Any:
    kafka = await open_kafka(groups__initial_rebalance_delay_ms=0)
    client = await kafka.client()
    await client.call(19, 7, topics=[TOPIC], timeout=1_000)
    return kafka


def subscription(*topics: str) -> bytes:
    names = b"".join([len(topic).to_bytes(2, "big") + topic.encode() for topic in topics])
    return b"\0\1" + len(topics).to_bytes(4, "big") + names + b"\xff\xff\xff\xff" + bytes(4)


async def join(client: Any, version: int = 9, member_id: str = "", group: str = "g", **fields: Any) -> Any:
    said = {"protocol_type": "consumer", "protocols": [{"name": "range", "metadata": subscription("orders")}], **fields}
    if version >= 1:
        said["rebalance_timeout"] = 60_000
    return await client.call(11, version, group_id=group, session_timeout=60_000, member_id=member_id, **said)


async def enter(client: Any, version: int = 9, **fields: Any) -> Any:
    """Joined, whatever it takes."""
    joined = await join(client, version, **fields)
    if joined.error_code == ID_REQUIRED:
        joined = await join(client, version, joined.member_id, **fields)
    return joined


async def sync(client: Any, joined: Any, version: int = 5, group: str = "g", **fields: Any) -> Any:
    said = {"assignments": [{"member_id": member.member_id, "assignment": b"part"} for member in joined.members], **fields}
    if version >= 5:
        said |= {"protocol_type": "consumer", "protocol_name": "range"}
    return await client.call(14, version, group_id=group, generation_id=joined.generation_id, member_id=joined.member_id, **said)


async def until_rebalancing(client: Any, joined: Any) -> None:
    for _ in range(1_000):
        beat = {"group_id": "g", "generation_id": joined.generation_id, "member_id": joined.member_id}
        if (await client.call(12, 4, **beat)).error_code == REBALANCING:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no rebalance began")


async def commit(client: Any, version: int = 9, member: Any = None, topic: str = "orders", group: str = "g", **part: Any) -> int:
    who = {"member_id": member.member_id, "generation_id_or_member_epoch": member.generation_id} if member else {}
    who = who or {"member_id": "", "generation_id_or_member_epoch": -1}
    partition = {"partition_index": 0, "committed_offset": 7, "committed_metadata": "note", **part}
    answer = await client.call(8, version, group_id=group, topics=[{"name": topic, "partitions": [partition]}], **who)
    (code,) = [one.error_code for found in answer.topics for one in found.partitions]
    return int(code)


async def fetch(client: Any, topics: Any, version: int = 8, group: str = "g", **said: Any) -> Any:
    if version >= 8:
        answer = await client.call(9, version, groups=[{"group_id": group, "topics": topics}], **said)
        return answer.groups[0]
    return await client.call(9, version, group_id=group, topics=topics, **said)


ORDERS = [{"name": "orders", "partition_indexes": [0, 1]}]


class TestMembership:
    @pytest.mark.parametrize("version", range(10))
    async def test_every_version_joins(self, kafka: Any, version: int) -> None:
        client = await kafka.client()
        joined = await enter(client, version)
        assert (joined.error_code, joined.generation_id, joined.protocol_name, joined.leader) == (0, 1, "range", joined.member_id)
        assert [member.metadata for member in joined.members] == [subscription("orders")]
        synced = await sync(client, joined, min(version, 5))
        assert (synced.error_code, synced.assignment) == (0, b"part")
        beat = {"group_id": "g", "generation_id": 1, "member_id": joined.member_id}
        assert (await client.call(12, min(version, 4), **beat)).error_code == 0
        assert (await client.call(12, min(version, 4), **{**beat, "generation_id": 2})).error_code == ILLEGAL_GENERATION
        if version < 3:
            left = await client.call(13, version, group_id="g", member_id=joined.member_id)
        else:
            members = [{"member_id": joined.member_id}, {"member_id": "stranger"}]
            left = await client.call(13, min(version, 5), group_id="g", members=members)
            assert [one.error_code for one in left.members] == [0, UNKNOWN_MEMBER]
        assert left.error_code == 0
        assert (await client.call(12, 4, **beat)).error_code == UNKNOWN_MEMBER

    async def test_two_members_share_and_one_dies(self, kafka: Any) -> None:
        one, two = await kafka.client(), await kafka.client()
        first = await enter(one)
        await sync(one, first)
        second = await join(two)
        assert second.error_code == ID_REQUIRED
        waiting = asyncio.create_task(join(two, member_id=second.member_id))
        await until_rebalancing(one, first)
        again, second = await join(one, member_id=first.member_id), await waiting
        assert again.generation_id == second.generation_id == 2
        assert {member.member_id for member in again.members} == {first.member_id, second.member_id}
        follower = asyncio.create_task(sync(two, second))
        assert (await sync(one, again)).assignment == (await follower).assignment == b"part"
        rejoining = asyncio.create_task(join(one, member_id=first.member_id))
        await until_rebalancing(two, second)
        await two.call(13, 5, group_id="g", members=[{"member_id": second.member_id}])
        assert len((await rejoining).members) == 1

    async def test_a_static_member_and_its_older_process(self, kafka: Any) -> None:
        one, two = await kafka.client(), await kafka.client()
        older = await enter(one, group_instance_id="x")
        await sync(one, older, group_instance_id="x")
        newer = await enter(two, group_instance_id="x")
        assert (newer.generation_id, newer.skip_assignment, newer.leader) == (1, True, newer.member_id)
        synced = await sync(two, newer, group_instance_id="x", assignments=[])
        assert synced.assignment == b"part"
        beat = {"group_id": "g", "generation_id": 1, "member_id": older.member_id, "group_instance_id": "x"}
        assert (await one.call(12, 4, **beat)).error_code == FENCED

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"group": ""}, INVALID_GROUP),
            ({"member_id": "stranger"}, UNKNOWN_MEMBER),
            ({"protocols": []}, INCONSISTENT_PROTOCOL),
            ({"protocol_type": ""}, INCONSISTENT_PROTOCOL),
        ],
    )
    async def test_refusals(self, kafka: Any, fields: dict[str, Any], code: int) -> None:
        client = await kafka.client()
        refused = await join(client, **fields)
        assert (refused.error_code, refused.generation_id, refused.members) == (code, -1, ())

    async def test_a_session_timeout_out_of_range(self, kafka: Any) -> None:
        client = await kafka.client()
        said = {"protocol_type": "consumer", "protocols": [{"name": "range", "metadata": b""}], "rebalance_timeout": 1}
        refused = await client.call(11, 9, group_id="g", session_timeout=5_999, member_id="", **said)
        assert refused.error_code == INVALID_SESSION

    async def test_who_may_not(self, kafka: Any) -> None:
        client = await kafka.client(kafka.token("none"))
        assert (await join(client)).error_code == GROUP_DENIED
        assert (await client.call(12, 4, group_id="g", generation_id=1, member_id="m")).error_code == GROUP_DENIED
        assert (await client.call(13, 5, group_id="g", members=[])).error_code == GROUP_DENIED
        assert await commit(client) == GROUP_DENIED
        assert (await fetch(client, ORDERS)).error_code == GROUP_DENIED
        found = await client.call(10, 4, key_type=0, coordinator_keys=["g"])
        assert found.coordinators[0].error_code == GROUP_DENIED
        found = await client.call(10, 4, key_type=1, coordinator_keys=["t"])
        assert found.coordinators[0].error_code == TRANSACTION_DENIED
        assert (await client.call(15, 6, groups=["g"])).groups[0].error_code == GROUP_DENIED
        assert (await client.call(42, 2, groups_names=["g"])).results[0].error_code == GROUP_DENIED
        assert (await client.call(16, 5)).groups == ()

    async def test_rights_by_the_groups_name(self, open_kafka: Any) -> None:
        role = [{"actions": ["group"], "topic": "billing*"}, {"actions": ["read"], "topic": "orders"}]
        kafka = await open_kafka(policy__roles={"billing": role})
        client = await kafka.client(kafka.token("billing"))
        found = await client.call(10, 4, key_type=0, coordinator_keys=["billing-eu", "shipping"])
        assert [one.error_code for one in found.coordinators] == [0, GROUP_DENIED]


class TestCoordinator:
    @pytest.mark.parametrize("version", range(7))
    async def test_it_is_this_node(self, kafka: Any, version: int) -> None:
        client = await kafka.client()
        asked = {"key": "g"} if version < 4 else {"coordinator_keys": ["g", "h"]}
        found = await client.call(10, version, **asked)
        for one in [found] if version < 4 else found.coordinators:
            assert (one.error_code, one.node_id, one.host, one.port) == (0, 1, kafka.host, kafka.port)

    async def test_of_nothing_else(self, kafka: Any) -> None:
        client = await kafka.client()
        found = await client.call(10, 6, key_type=2, coordinator_keys=["g:t:0"])
        assert (found.coordinators[0].error_code, found.coordinators[0].node_id) == (INVALID_REQUEST, -1)


class TestOffsets:
    @pytest.mark.parametrize("version", range(2, 10))
    async def test_every_version_commits(self, kafka: Any, version: int) -> None:
        client = await kafka.client()
        assert await commit(client, version) == 0
        (topic,) = (await fetch(client, ORDERS)).topics
        found = [(one.partition_index, one.committed_offset, one.metadata, one.error_code) for one in topic.partitions]
        assert found == [(0, 7, "note", 0), (1, -1, "", 0)]

    @pytest.mark.parametrize("version", range(1, 10))
    async def test_every_version_fetches(self, kafka: Any, version: int) -> None:
        client = await kafka.client()
        await commit(client)
        for topics in [ORDERS, None] if version >= 2 else [ORDERS]:
            found = await fetch(client, topics, version)
            assert getattr(found, "error_code", 0) == 0
            (topic,) = found.topics
            assert (topic.name, topic.partitions[0].committed_offset, topic.partitions[0].metadata) == ("orders", 7, "note")

    async def test_topics_by_id(self, kafka: Any) -> None:
        client = await kafka.client()
        metadata = await client.call(3, 12, topics=[{"name": "orders", "topic_id": None}])
        topic_id = metadata.topics[0].topic_id
        partition = {"partition_index": 1, "committed_offset": 3, "committed_metadata": None}
        unknown = type(topic_id)(int=7)
        topics = [{"topic_id": one, "partitions": [partition]} for one in (topic_id, unknown)]
        answer = await client.call(8, 10, group_id="g", generation_id_or_member_epoch=-1, member_id="", topics=topics)
        assert [topic.partitions[0].error_code for topic in answer.topics] == [0, UNKNOWN_ID]
        asked = [{"topic_id": one, "partition_indexes": [1]} for one in (topic_id, unknown)]
        for found in (await fetch(client, asked, 10), await fetch(client, None, 10)):
            assert found.topics[0].topic_id == topic_id
            assert (found.topics[0].partitions[0].committed_offset, found.topics[0].partitions[0].metadata) == (3, "")
        assert (await fetch(client, asked, 10)).topics[1].partitions[0].error_code == UNKNOWN_ID

    @pytest.mark.parametrize(
        ("part", "code"),
        [
            ({"topic": "elsewhere"}, UNKNOWN_TOPIC),
            ({"partition_index": 2}, UNKNOWN_TOPIC),
            ({"partition_index": -1}, UNKNOWN_TOPIC),
            ({"committed_metadata": "x" * 4_097}, METADATA_TOO_LARGE),
        ],
    )
    async def test_refusals(self, kafka: Any, part: dict[str, Any], code: int) -> None:
        client = await kafka.client()
        assert await commit(client, **part) == code
        assert (await fetch(client, None)).topics == ()

    async def test_only_members(self, kafka: Any) -> None:
        client = await kafka.client()
        joined = await enter(client)
        assert await commit(client, member=joined) == REBALANCING
        await sync(client, joined)
        assert await commit(client, member=joined) == 0
        assert await commit(client) == UNKNOWN_MEMBER

    async def test_rights_on_topics(self, kafka: Any) -> None:
        await (await kafka.client()).call(19, 7, topics=[{**TOPIC, "name": "secret"}], timeout=1_000)
        assert await commit(await kafka.client(), topic="secret") == 0
        client = await kafka.client(kafka.token("some-keys"))
        assert await commit(client, topic="secret") == TOPIC_DENIED
        assert await commit(client, topic="nowhere") == TOPIC_DENIED
        assert await commit(client) == 0
        asked = [{"name": "secret", "partition_indexes": [0]}, {"name": "orders", "partition_indexes": [0]}]
        found = await fetch(client, asked)
        assert [topic.partitions[0].error_code for topic in found.topics] == [TOPIC_DENIED, 0]
        assert [topic.name for topic in (await fetch(client, None)).topics] == ["orders"]

    async def test_they_survive_a_restart(self, kafka: Any) -> None:
        client = await kafka.client()
        joined = await enter(client)
        await sync(client, joined)
        assert await commit(client, member=joined) == 0
        await kafka.close()
        await kafka.node.stop()
        again = Node(kafka.node.config)
        await again.start()
        client = RawClient(*await asyncio.open_connection(*again.addresses["kafka"]))
        await client.login(kafka.admin)
        assert (await fetch(client, ORDERS)).topics[0].partitions[0].committed_offset == 7
        beat = {"group_id": "g", "generation_id": joined.generation_id, "member_id": joined.member_id}
        assert (await client.call(12, 4, **beat)).error_code == 0
        await client.close()
        await again.stop()

    async def test_deleting_some(self, kafka: Any) -> None:
        client = await kafka.client()
        await commit(client)
        topics = [{"name": "orders", "partitions": [{"partition_index": 0}, {"partition_index": 9}]}]
        assert (await client.call(47, 0, group_id="nothing", topics=topics)).error_code == NOT_FOUND
        answer = await client.call(47, 0, group_id="g", topics=topics)
        assert [one.error_code for one in answer.topics[0].partitions] == [0, UNKNOWN_TOPIC]
        assert (await fetch(client, None)).topics == ()
        joined = await enter(client)
        await sync(client, joined)
        await commit(client, member=joined)
        answer = await client.call(47, 0, group_id="g", topics=topics)
        assert answer.topics[0].partitions[0].error_code == SUBSCRIBED
        assert (await fetch(client, ORDERS)).topics[0].partitions[0].committed_offset == 7


class TestTools:
    @pytest.mark.parametrize("version", range(6))
    async def test_listing(self, kafka: Any, version: int) -> None:
        client = await kafka.client()
        await commit(client, group="alone")
        joined = await enter(client)
        await sync(client, joined)
        listed = (await client.call(16, version)).groups
        assert [(one.group_id, one.protocol_type) for one in listed] == [("alone", ""), ("g", "consumer")]
        if version >= 4:
            assert [one.group_state for one in listed] == ["Empty", "Stable"]
            (only,) = (await client.call(16, version, states_filter=["stable"])).groups
            assert only.group_id == "g"
        if version >= 5:
            assert (await client.call(16, 5, types_filter=["consumer"])).groups == ()

    @pytest.mark.parametrize("version", range(7))
    async def test_describing(self, kafka: Any, version: int) -> None:
        client = await kafka.client()
        joined = await enter(client, group_instance_id="x")
        rebalancing = (await client.call(15, version, groups=["g"])).groups[0]
        assert (rebalancing.group_state, rebalancing.protocol_data) == ("CompletingRebalance", "")
        await sync(client, joined, group_instance_id="x")
        found, missing = (await client.call(15, version, groups=["g", "nothing"])).groups
        assert (found.error_code, found.group_state, found.protocol_type, found.protocol_data) == (
            0,
            "Stable",
            "consumer",
            "range",
        )
        (member,) = found.members
        assert (member.member_id, member.client_id, member.client_host) == (joined.member_id, "test", "/127.0.0.1")
        assert (member.member_metadata, member.member_assignment) == (subscription("orders"), b"part")
        assert (missing.group_state, missing.error_code) == ("Dead", NOT_FOUND if version >= 6 else 0)
        if version >= 3:
            asked = (await client.call(15, version, groups=["g"], include_authorized_operations=True)).groups[0]
            assert (found.authorized_operations, asked.authorized_operations) == (-(2**31), 328)

    @pytest.mark.parametrize("version", range(3))
    async def test_deleting(self, kafka: Any, version: int) -> None:
        client = await kafka.client()
        await commit(client, group="alone")
        joined = await enter(client)
        results = (await client.call(42, version, groups_names=["alone", "g", "nothing"])).results
        assert [one.error_code for one in results] == [0, NOT_EMPTY, NOT_FOUND]
        assert (await fetch(client, None, group="alone")).topics == ()
        await client.call(13, 5, group_id="g", members=[{"member_id": joined.member_id}])
        assert (await client.call(42, version, groups_names=["g"])).results[0].error_code == 0
