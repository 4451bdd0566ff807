"""Groups of the consumer protocol (KIP-848), call by call."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.endpoints.kafka.test_groups import ORDERS, TOPIC, UNKNOWN_MEMBER, commit, enter, fetch

INCONSISTENT_PROTOCOL, TOPIC_DENIED, GROUP_DENIED, INVALID_REQUEST, NOT_EMPTY, NOT_FOUND = 23, 29, 30, 42, 68, 69
FENCED_EPOCH, UNSUPPORTED_ASSIGNOR, STALE_EPOCH, BAD_PATTERN = 110, 112, 113, 128


@pytest.fixture
async def kafka(open_kafka: Any) -> Any:
    kafka = await open_kafka(groups__consumer_refresh_ms=0, groups__initial_rebalance_delay_ms=0)
    client = await kafka.client()
    await client.call(19, 7, topics=[TOPIC], timeout=1_000)
    return kafka


async def beat(client: Any, version: int = 1, **fields: Any) -> Any:
    """Joins, unless the fields say otherwise."""
    said: dict[str, Any] = {"group_id": "g", "member_id": "m", "member_epoch": 0, "topic_partitions": None, **fields}
    if said["member_epoch"] == 0:
        said = {"rebalance_timeout": 10_000, "subscribed_topic_names": ["orders"], **said}
        said["topic_partitions"] = fields.get("topic_partitions", [])
    return await client.call(68, version, **said)


def partitions(answer: Any) -> list[int]:
    return [partition for topic in answer.assignment.topic_partitions for partition in topic.partitions]


class TestHeartbeat:
    async def test_joining_sharing_and_leaving(self, kafka: Any) -> None:
        client = await kafka.client()
        first = await beat(client, member_id="a")
        assert (first.error_code, first.member_id, first.member_epoch) == (0, "a", 2)
        assert partitions(first) == [0, 1]
        assert first.heartbeat_interval.total_seconds() == 5
        second = await beat(client, member_id="b")
        assert (second.member_epoch, partitions(second)) == (3, [])
        owned = [{"topic_id": one.topic_id, "partitions": one.partitions} for one in first.assignment.topic_partitions]
        told = await beat(client, member_id="a", member_epoch=2, topic_partitions=owned)
        assert len(partitions(told)) == 1
        owned = [{"topic_id": one.topic_id, "partitions": one.partitions} for one in told.assignment.topic_partitions]
        assert (await beat(client, member_id="a", member_epoch=2, topic_partitions=owned)).member_epoch == 3
        assert len(partitions(await beat(client, member_id="b", member_epoch=3))) == 1
        left = await beat(client, member_id="a", member_epoch=-1)
        assert (left.error_code, left.member_epoch, left.heartbeat_interval.total_seconds()) == (0, -1, 0)
        assert (await beat(client, member_id="a", member_epoch=3)).error_code == UNKNOWN_MEMBER
        assert partitions(await beat(client, member_id="b", member_epoch=3)) == [0, 1]

    async def test_the_node_makes_the_id_in_version_0(self, kafka: Any) -> None:
        client = await kafka.client()
        made = await beat(client, 0, member_id="")
        assert made.error_code == 0
        assert len(made.member_id) == 36
        assert (await beat(client, 0, member_id=made.member_id, member_epoch=2)).error_code == 0

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"group_id": ""}, INVALID_REQUEST),
            ({"member_id": ""}, INVALID_REQUEST),
            ({"instance_id": ""}, INVALID_REQUEST),
            ({"rack_id": ""}, INVALID_REQUEST),
            ({"rebalance_timeout": -1}, INVALID_REQUEST),
            ({"topic_partitions": None}, INVALID_REQUEST),
            ({"subscribed_topic_names": None}, INVALID_REQUEST),
            ({"member_epoch": -3}, INVALID_REQUEST),
            ({"member_epoch": -2}, INVALID_REQUEST),
            ({"member_epoch": 7}, NOT_FOUND),
            ({"member_epoch": -1}, NOT_FOUND),
            ({"server_assignor": "mine"}, UNSUPPORTED_ASSIGNOR),
            ({"subscribed_topic_regex": "("}, BAD_PATTERN),
            ({"subscribed_topic_regex": "(a" * 600}, BAD_PATTERN),
        ],
    )
    async def test_refusals(self, kafka: Any, fields: dict[str, Any], code: int) -> None:
        client = await kafka.client()
        refused = await beat(client, **fields)
        assert (refused.error_code, refused.assignment) == (code, None)
        assert refused.error_message
        assert (await client.call(16, 5)).groups == (), "nothing is left of it"

    async def test_fencing(self, kafka: Any) -> None:
        client = await kafka.client()
        await beat(client)
        assert (await beat(client, member_epoch=3)).error_code == FENCED_EPOCH
        assert (await beat(client, member_id="n", member_epoch=1)).error_code == UNKNOWN_MEMBER

    async def test_who_may_not(self, kafka: Any) -> None:
        client = await kafka.client(kafka.token("none"))
        assert (await beat(client)).error_code == GROUP_DENIED
        client = await kafka.client(kafka.token("some-keys"))
        assert (await beat(client)).error_code == 0
        assert (await beat(client, member_id="n", subscribed_topic_names=["secret"])).error_code == TOPIC_DENIED

    async def test_a_pattern_reaches_what_may_be_described(self, kafka: Any) -> None:
        await (await kafka.client()).call(19, 7, topics=[{**TOPIC, "name": "secret"}], timeout=1_000)
        for token, count in ((kafka.token("some-keys"), 2), (None, 4)):
            client = await kafka.client(token)
            found = await beat(client, group_id=f"g{count}", subscribed_topic_names=None, subscribed_topic_regex=".*")
            assert len(partitions(found)) == count


class TestOffsets:
    async def test_only_members_of_this_epoch(self, kafka: Any) -> None:
        client = await kafka.client()
        await beat(client)

        async def said(member_id: str, epoch: int) -> tuple[int, int]:
            partition = {"partition_index": 0, "committed_offset": 7, "committed_metadata": ""}
            topics = [{"name": "orders", "partitions": [partition]}]
            answer = await client.call(
                8, 9, group_id="g", generation_id_or_member_epoch=epoch, member_id=member_id, topics=topics
            )
            asked = [{"group_id": "g", "member_id": member_id, "member_epoch": epoch, "topics": ORDERS}]
            fetched = (await client.call(9, 9, groups=asked)).groups[0]
            return answer.topics[0].partitions[0].error_code, fetched.error_code

        assert await said("m", 2) == (0, 0)
        assert await said("m", 3) == (STALE_EPOCH, STALE_EPOCH)
        assert await said("n", 1) == (UNKNOWN_MEMBER, UNKNOWN_MEMBER)
        assert (await fetch(client, ORDERS)).topics[0].partitions[0].committed_offset == 7, "tools need not be members"
        assert await commit(client) == UNKNOWN_MEMBER


class TestKinds:
    async def test_a_running_group_of_the_other_kind_is_left_alone(self, kafka: Any) -> None:
        client = await kafka.client()
        joined = await enter(client)
        refused = await beat(client)
        assert refused.error_code == NOT_FOUND
        assert "stop them first" in refused.error_message
        await client.call(13, 5, group_id="g", members=[{"member_id": joined.member_id}])
        taken = await beat(client)
        assert (taken.error_code, taken.member_epoch) == (0, joined.generation_id + 2), "epochs go on from the generations"
        assert (await enter(client)).error_code == INCONSISTENT_PROTOCOL
        await beat(client, member_epoch=-1)
        assert (await enter(client)).generation_id > taken.member_epoch

    async def test_an_empty_group_keeps_its_offsets(self, kafka: Any) -> None:
        client = await kafka.client()
        await commit(client)
        await beat(client)
        assert (await fetch(client, ORDERS)).topics[0].partitions[0].committed_offset == 7
        listed = (await client.call(16, 5)).groups
        assert [(one.group_id, one.group_type, one.group_state, one.protocol_type) for one in listed] == [
            ("g", "consumer", "Stable", "consumer")
        ]


class TestDescribe:
    @pytest.mark.parametrize("version", [0, 1])
    async def test_a_group(self, kafka: Any, version: int) -> None:
        client = await kafka.client()
        await beat(client, instance_id="i", rack_id="r", server_assignor="range")
        found, missing = (await client.call(69, version, group_ids=["g", "nothing"])).groups
        assert (found.error_code, found.group_state, found.group_epoch, found.assignment_epoch) == (0, "Stable", 2, 2)
        assert found.assignor_name == "range"
        (member,) = found.members
        assert (member.member_id, member.instance_id, member.rack_id, member.member_epoch) == ("m", "i", "r", 2)
        assert (member.client_id, member.client_host, member.subscribed_topic_names) == ("test", "/127.0.0.1", ("orders",))
        for part in (member.assignment, member.target_assignment):
            assert [(one.topic_name, one.partitions) for one in part.topic_partitions] == [("orders", (0, 1))]
        assert (missing.error_code, missing.members) == (NOT_FOUND, ())
        if version == 1:
            assert member.member_type == 1
        (old,) = (await client.call(15, 6, groups=["g"])).groups
        assert (old.error_code, old.group_state) == (NOT_FOUND, "Dead")

    async def test_who_may_not(self, kafka: Any) -> None:
        client = await kafka.client()
        await client.call(19, 7, topics=[{**TOPIC, "name": "secret"}], timeout=1_000)
        await beat(client, subscribed_topic_names=["secret"])
        for role, code in (("none", GROUP_DENIED), ("some-keys", TOPIC_DENIED)):
            other = await kafka.client(kafka.token(role))
            (found,) = (await other.call(69, 1, group_ids=["g"])).groups
            assert (found.error_code, found.members) == (code, ())

    async def test_deleting(self, kafka: Any) -> None:
        client = await kafka.client()
        await beat(client)
        assert (await client.call(42, 2, groups_names=["g"])).results[0].error_code == NOT_EMPTY
        await beat(client, member_epoch=-1)
        assert (await client.call(42, 2, groups_names=["g"])).results[0].error_code == 0
        assert (await client.call(16, 5)).groups == ()
