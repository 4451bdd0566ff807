"""Which right decides each API, for principals that have some rights and not others: every row of the table of operations has at
least one here, so that none is added without saying who may call it.

A row says which codes each principal is answered. Who is refused is told the same whether there is such a name or not, and sees
none of what was planted: in records, offsets' notes, members' metadata, names that were not asked for.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec
import pytest
from kio.index import load_response_schema
from kio.serial import entity_reader

from broker.batch import build
from gateway.endpoints.kafka.operations import ALWAYS, OF_GROUPS, OF_USERS
from security.policy.quotas import Quota, Quotas
from tests.gateway.endpoints.kafka.test_groups import enter, subscription, sync
from tests.gateway.endpoints.kafka.test_transactions import Caller, numbered

PRINCIPALS = ("nobody", "neighbour", "some-keys", "reader", "writer", "groupless", "monitor")
ON_TOPICS = ["publish", "read", "describe", "create", "alter", "delete"]
ROLES = {
    "nobody": [{"actions": ["describe"], "topic": "elsewhere"}],
    "neighbour": [{"actions": [*ON_TOPICS, "group", "transaction"], "topic": "mine*"}],
    "some-keys": [
        {"actions": ["publish", "read"], "topic": "orders", "key": "eu/*"},
        {"actions": ["describe"], "topic": "orders"},
        {"actions": ["group"], "topic": "*"},
    ],
    "groupless": [{"actions": ON_TOPICS, "topic": "*"}],
}
BUILT_IN = {"reader": "subscriber", "writer": "publisher"}

TOPIC, GROUP, CLUSTER, ID = 29, 30, 31, 53
UNKNOWN_ID = 100
DENIED = {TOPIC, GROUP, CLUSTER, ID}
OPEN = {17, 18, 36}  # what leads to authentication: nobody is known yet

UNCHARGED = {11, 12, 13, 14, 26, 68}
"""Groups, producers and transactions: whose heartbeats are held back is taken for dead. It shrinks, and does not grow."""

EU, US, NOTE, METADATA = b"planted-eu", b"planted-us", b"planted-note", b"planted-metadata"

Codes = int | set[int]


class World:
    """What the administrator has made. `existing` False gives the names of what is not there in their place."""

    def __init__(self, topic_id: uuid.UUID, producer: tuple[int, int]) -> None:
        self.topic, self.group, self.team, self.next, self.id = "orders", "billing", "team", "nextgen", "pay"
        self.topic_id, self.producer = topic_id, producer

    def without(self) -> World:
        """The same questions about names that nobody has."""
        other = World(self.topic_id, self.producer)
        other.topic, other.group, other.team, other.next, other.id = "absent", "absent", "absent", "absent", "absent"
        return other


class Row(msgspec.Struct, frozen=True):
    """`codes` in the order of PRINCIPALS; `seen`: what was planted, and who finds it in the answer. `by_id`: the id of a topic is
    not guessed, so an unknown one may be told from a forbidden one."""

    api: int
    version: int
    right: str
    ask: Callable[[World], Mapping[str, Any]]
    codes: tuple[Codes, ...]
    seen: Mapping[bytes, set[str]] = {}
    by_id: bool = False


def on_topic(**more: Any) -> Callable[[World], Mapping[str, Any]]:
    return lambda world: {"topics": [{"name": world.topic, **more}]}


def records(world: World) -> list[dict[str, Any]]:
    import time

    batch = build([(int(time.time() * 1_000), b"us/1", b"value", ())])
    return [{"index": 0, "records": batch}]


def wanted() -> list[dict[str, Any]]:
    return [{"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1 << 20}]


def fetching(topics: Any) -> dict[str, Any]:
    return {"max_wait": 0, "min_bytes": 1, "max_bytes": 1 << 20, "session_epoch": -1, "topics": topics}


def transactional(world: World, **more: Any) -> dict[str, Any]:
    said = {"transactional_id": world.id, "producer_id": world.producer[0], "producer_epoch": world.producer[1]}
    return said | more


def adding(world: World, id: str, topic: str) -> dict[str, Any]:
    said = transactional(world, transactional_id=id)
    return {f"v3_and_below_{name}": value for name, value in said.items()} | {
        "v3_and_below_topics": [{"name": topic, "partitions": [1]}]
    }


def resource(kind: int, name: str, **more: Any) -> dict[str, Any]:
    return {"resources": [{"resource_type": kind, "resource_name": name, **more}]}


def offset() -> dict[str, Any]:
    return {"partition_index": 0, "committed_offset": 1, "committed_metadata": NOTE.decode()}


def committing(group: str, topics: Any) -> dict[str, Any]:
    return {"group_id": group, "generation_id_or_member_epoch": -1, "member_id": "", "topics": topics}


def beating(group: str, topic: str) -> dict[str, Any]:
    said = {"rebalance_timeout": 60_000, "subscribed_topic_names": [topic], "topic_partitions": []}
    return {"group_id": group, "member_id": str(uuid.UUID(int=9)), "member_epoch": 0, **said}


def describes(refused: int = TOPIC) -> tuple[Codes, ...]:
    return (refused, refused, 0, 0, 0, 0, 0)


def reads(refused: int = TOPIC) -> tuple[Codes, ...]:
    return (refused, refused, 0, 0, refused, 0, refused)


def uses_groups(code: Codes = 0) -> tuple[Codes, ...]:
    return (GROUP, GROUP, code, code, GROUP, GROUP, GROUP)


def uses_transactions(code: Codes = 0) -> tuple[Codes, ...]:
    return (ID, ID, ID, ID, code, ID, ID)


def owns(code: Codes = 0, refused: Codes = TOPIC) -> tuple[Codes, ...]:
    """Create, alter, delete."""
    return (refused, refused, refused, refused, refused, code, refused)


def of_the_node(*, monitored: bool) -> tuple[Codes, ...]:
    return (CLUSTER,) * 6 + (0 if monitored else CLUSTER,)


READERS, DESCRIBERS = {"some-keys", "reader", "groupless"}, {"some-keys", "reader", "writer", "groupless", "monitor"}
MEMBERS = {"some-keys", "reader"}
EVERYBODY = (0,) * len(PRINCIPALS)

# In this order: what changes the world for others comes last.
ROWS = (
    Row(3, 12, "describe", lambda world: {"topics": [{"name": world.topic}], "allow_auto_topic_creation": False}, describes()),
    Row(3, 12, "describe", lambda world: {"topics": [{"topic_id": world.topic_id}]}, describes(UNKNOWN_ID), by_id=True),
    Row(3, 12, "describe", lambda _: {"topics": None}, EVERYBODY, {b"orders": DESCRIBERS}),
    Row(75, 0, "describe", lambda world: {**on_topic()(world), "response_partition_limit": 10}, describes()),
    Row(75, 0, "describe", lambda _: {"response_partition_limit": 10}, EVERYBODY, {b"orders": DESCRIBERS}),
    Row(60, 2, "nothing", lambda _: {"endpoint_type": 1}, EVERYBODY),
    Row(2, 8, "describe or read", on_topic(partitions=[{"partition_index": 0, "timestamp": -1}]), describes()),
    Row(
        23,
        4,
        "describe or read",
        lambda world: {"topics": [{"topic": world.topic, "partitions": [{"partition": 0, "current_leader_epoch": -1}]}]},
        describes(),
    ),
    Row(
        1,
        12,
        "read",
        lambda world: fetching([{"topic": world.topic, "partitions": wanted()}]),
        reads(),
        {EU: READERS, US: {"reader", "groupless"}},
    ),
    Row(
        1,
        16,
        "read",
        lambda world: fetching([{"topic_id": world.topic_id, "partitions": wanted()}]),
        reads(),
        {EU: READERS, US: {"reader", "groupless"}},
        by_id=True,
    ),
    Row(61, 0, "read", on_topic(partition_indexes=[0]), reads()),
    Row(
        0,
        12,
        "publish, this key of it",
        lambda world: {"acks": -1, "topic_data": [{"name": world.topic, "partition_data": records(world)}]},
        (TOPIC, TOPIC, TOPIC, TOPIC, 0, 0, TOPIC),
    ),
    Row(
        0,
        13,
        "publish, this key of it",
        lambda world: {"acks": -1, "topic_data": [{"topic_id": world.topic_id, "partition_data": records(world)}]},
        (TOPIC, TOPIC, TOPIC, TOPIC, 0, 0, TOPIC),
        by_id=True,
    ),
    Row(22, 4, "publish to any topic", lambda _: {"transactional_id": None}, (CLUSTER, 0, 0, CLUSTER, 0, 0, CLUSTER)),
    # Groups, and what they read.
    Row(10, 4, "group", lambda world: {"key_type": 0, "coordinator_keys": [world.group]}, uses_groups()),
    Row(10, 4, "transaction", lambda world: {"key_type": 1, "coordinator_keys": [world.id]}, uses_transactions()),
    Row(
        11,
        9,
        "group",
        lambda world: {
            "group_id": world.team,
            "session_timeout": 60_000,
            "protocol_type": "consumer",
            "protocols": [{"name": "range", "metadata": b"m"}],
        },
        uses_groups(79),
        {METADATA: set()},
    ),
    Row(12, 4, "group", lambda world: {"group_id": world.team, "member_id": "m"}, uses_groups(25)),
    Row(13, 5, "group", lambda world: {"group_id": world.team, "members": [{"member_id": "m"}]}, uses_groups({0, 25})),
    Row(14, 5, "group", lambda world: {"group_id": world.team, "member_id": "m"}, uses_groups(25), {METADATA: set()}),
    Row(15, 5, "group", lambda world: {"groups": [world.team]}, uses_groups(), {METADATA: MEMBERS}),
    Row(16, 4, "group", lambda _: {}, EVERYBODY, {b"team": MEMBERS, b"mine-group": {*MEMBERS, "neighbour"}}),
    Row(
        8,
        9,
        "group, and read",
        lambda world: committing(world.group, [{"name": world.topic, "partitions": [offset()]}]),
        uses_groups(),
    ),
    Row(
        8,
        10,
        "group, and read",
        lambda world: committing("mine-group", [{"topic_id": world.topic_id, "partitions": [offset()]}]),
        (GROUP, TOPIC, 0, 0, GROUP, GROUP, GROUP),
        by_id=True,
    ),
    Row(
        8,
        9,
        "group, and read",
        lambda world: committing("mine-group", [{"name": world.topic, "partitions": [offset()]}]),
        (GROUP, TOPIC, 0, 0, GROUP, GROUP, GROUP),
    ),
    Row(
        9,
        8,
        "group, and read or describe",
        lambda world: {"groups": [{"group_id": world.group, "topics": [{"name": world.topic, "partition_indexes": [0]}]}]},
        uses_groups(),
        {NOTE: MEMBERS},
    ),
    Row(
        9,
        8,
        "group, and read or describe",
        lambda world: {"groups": [{"group_id": "mine-group", "topics": [{"name": world.topic, "partition_indexes": [0]}]}]},
        (GROUP, TOPIC, 0, 0, GROUP, GROUP, GROUP),
        {NOTE: MEMBERS},
    ),
    Row(
        9,
        10,
        "group, and read or describe",
        lambda world: {"groups": [{"group_id": "mine-group", "topics": None}]},
        (GROUP, 0, 0, 0, GROUP, GROUP, GROUP),
        {NOTE: MEMBERS},
    ),
    Row(
        47,
        0,
        "group, and read",
        lambda world: {"group_id": "mine-group", "topics": [{"name": world.topic, "partitions": [{"partition_index": 1}]}]},
        (GROUP, {0, TOPIC}, 0, 0, GROUP, GROUP, GROUP),
    ),
    Row(
        68,
        1,
        "group, and read or describe",
        lambda world: beating("mine-next", world.topic),
        (GROUP, TOPIC, 0, 0, GROUP, GROUP, GROUP),
    ),
    Row(69, 1, "group, and read or describe", lambda world: {"group_ids": [world.next]}, uses_groups(), {b"orders": MEMBERS}),
    Row(
        69,
        1,
        "group, and read or describe",
        lambda _: {"group_ids": ["mine-nextgen"]},
        (GROUP, TOPIC, 0, 0, GROUP, GROUP, GROUP),
        {b"orders": MEMBERS},
    ),
    Row(42, 2, "group", lambda world: {"groups_names": [world.team]}, uses_groups(68)),
    # Transactions: of a transactional id that is somebody else's, and of one's own on a topic that is not.
    Row(65, 0, "transaction", lambda world: {"transactional_ids": [world.id]}, uses_transactions(), {b"orders": {"writer"}}),
    Row(65, 0, "transaction", lambda _: {"transactional_ids": ["mine-id"]}, (ID, 0, ID, ID, 0, ID, ID), {b"orders": {"writer"}}),
    Row(
        66,
        1,
        "transaction",
        lambda _: {"duration_filter": -1},
        EVERYBODY,
        {b"pay": {"writer"}, b"mine-id": {"writer", "neighbour"}},
    ),
    Row(24, 3, "transaction, and publish", lambda world: adding(world, world.id, world.topic), uses_transactions()),
    Row(24, 3, "transaction, and publish", lambda world: adding(world, "mine-id", world.topic), (ID, TOPIC, ID, ID, 49, ID, ID)),
    Row(25, 3, "transaction, and group", lambda world: transactional(world, group_id=world.group), uses_transactions(GROUP)),
    Row(
        28,
        3,
        "transaction, group, and read",
        lambda world: transactional(
            world,
            group_id=world.group,
            generation_id=-1,
            member_id="",
            topics=[{"name": world.topic, "partitions": [offset()]}],
        ),
        uses_transactions(GROUP),
    ),
    Row(
        28,
        3,
        "transaction, group, and read",
        lambda world: transactional(
            world,
            transactional_id="mine-id",
            group_id="mine-group",
            generation_id=-1,
            member_id="",
            topics=[{"name": world.topic, "partitions": [offset()]}],
        ),
        (ID, TOPIC, ID, ID, GROUP, ID, ID),
    ),
    Row(26, 3, "transaction", lambda world: transactional(world, committed=False), uses_transactions()),
    Row(22, 4, "transaction", lambda world: {"transactional_id": world.id, "transaction_timeout": 60_000}, uses_transactions()),
    # The node.
    Row(32, 4, "metrics", lambda _: resource(4, "1", configuration_keys=None), of_the_node(monitored=True)),
    Row(33, 2, "admin", lambda _: {**resource(4, "1"), "validate_only": True}, of_the_node(monitored=False)),
    Row(44, 1, "admin", lambda _: {**resource(4, "1"), "validate_only": True}, of_the_node(monitored=False)),
    Row(35, 4, "metrics, and describe", lambda _: {"topics": None}, of_the_node(monitored=True), {b"orders": {"monitor"}}),
    Row(
        43,
        2,
        "admin",
        lambda world: {"topic_partitions": [{"topic": world.topic, "partitions": [0]}]},
        of_the_node(monitored=False),
    ),
    Row(43, 2, "admin", lambda _: {"topic_partitions": None}, of_the_node(monitored=False), {b"orders": set()}),
    Row(46, 0, "metrics", lambda world: {"topics": None}, of_the_node(monitored=True)),
    Row(48, 1, "metrics", lambda _: {"components": [], "strict": False}, of_the_node(monitored=True)),
    Row(50, 0, "tokens", lambda _: {"users": None}, of_the_node(monitored=False), {b"alice": set()}),
    Row(
        51,
        0,
        "tokens",
        lambda _: {"deletions": [{"name": "alice", "mechanism": 1}], "upsertions": []},
        of_the_node(monitored=False),
    ),
    Row(74, 1, "metrics, and describe", lambda _: {"resource_types": []}, of_the_node(monitored=True), {b"orders": {"monitor"}}),
    # Topics and their configs; those who may delete do so last.
    Row(
        32, 4, "describe", lambda world: resource(2, world.topic, configuration_keys=None), describes(), {b"86399999": DESCRIBERS}
    ),
    Row(33, 2, "alter", lambda world: {**resource(2, world.topic), "validate_only": True}, owns()),
    Row(
        44,
        1,
        "alter",
        lambda world: {
            **resource(2, world.topic, configs=[{"name": "retention.ms", "config_operation": 0, "value": "1000"}]),
            "validate_only": True,
        },
        owns(),
    ),
    Row(37, 3, "alter", lambda world: {**on_topic(count=9, assignments=None)(world), "validate_only": True}, owns()),
    Row(19, 7, "create", lambda world: on_topic(num_partitions=1, replication_factor=1)(world), owns(36)),
    Row(21, 2, "delete", on_topic(partitions=[{"partition_index": 0, "offset": 1}]), owns()),
    Row(20, 6, "delete", lambda world: {"topics": [{"topic_id": world.topic_id}]}, (TOPIC,) * 5 + (0, TOPIC), by_id=True),
    Row(20, 6, "delete", on_topic(topic_id=None), owns(3)),
)


def test_every_api_has_a_row() -> None:
    """Whoever adds an API says here who may call it."""
    served = {row.api for row in (*ALWAYS, *OF_GROUPS, *OF_USERS)}
    assert {row.api for row in ROWS} == served - OPEN
    assert {row.api for row in (*ALWAYS, *OF_GROUPS, *OF_USERS) if row.open} == OPEN
    assert all(len(row.codes) == len(PRINCIPALS) for row in ROWS)


@pytest.mark.parametrize("principal", PRINCIPALS)
async def test_rights(open_kafka: Any, principal: str) -> None:
    kafka = await open_kafka(policy__roles=ROLES, groups__initial_rebalance_delay_ms=0)
    world = await planted(kafka)
    client = await kafka.client(kafka.token(BUILT_IN.get(principal, principal)))
    wrong = []
    for row in ROWS:
        expected = row.codes[PRINCIPALS.index(principal)]
        expected = expected if isinstance(expected, set) else {expected}
        found, frame = await asked(client, row, world)
        if found != expected:
            wrong.append(f"{row.api} ({row.right}): {found}, where {expected} is right")
        for secret, who in row.seen.items():
            if (secret in frame) != (principal in who):
                wrong.append(f"{row.api} ({row.right}): {secret!r} is {'' if secret in frame else 'not '}in the answer")
        if expected & DENIED and not row.by_id and (absent := (await asked(client, row, world.without()))[0]) != found:
            wrong.append(f"{row.api} ({row.right}): {found} where there is something, {absent} where there is nothing")
    assert not wrong, "\n".join(wrong)


async def test_every_request_is_charged(open_kafka: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No API is a way round the quota on requests."""
    kafka = await open_kafka(groups__initial_rebalance_delay_ms=0, quotas__requests_per_s=1e9)
    world = await planted(kafka)
    client = await kafka.client()
    charged: list[Quota] = []

    def admit(_: Quotas, quota: Quota, *cost: Any) -> int:
        charged.append(quota)
        return 0

    monkeypatch.setattr(Quotas, "admit", admit)
    free = set()
    for row in ROWS:
        charged.clear()
        await asked(client, row, world)
        if Quota.REQUESTS not in charged:
            free.add(row.api)
    assert free == UNCHARGED, " ".join(map(str, sorted(free)))


async def asked(client: Any, row: Row, world: World) -> tuple[set[int], bytes]:
    """The codes of an answer, zero only where there is no other, and its bytes."""
    client.send(row.api, row.version, **row.ask(world))
    frame = await client.frame()
    schema = load_response_schema(row.api, row.version)
    answer, _ = entity_reader(schema)(frame[5 if schema.__flexible__ else 4 :], 0)
    found = set(codes(answer))
    return (found if row.api in (13, 47) else found - {0}) or {0}, frame


def codes(value: Any) -> Iterator[int]:
    if isinstance(value, tuple):
        for one in value:
            yield from codes(one)
    elif is_dataclass(value):
        for field in fields(value):
            if field.name.endswith("error_code"):
                yield int(getattr(value, field.name))
            else:
                yield from codes(getattr(value, field.name))


async def planted(kafka: Any) -> World:
    admin = await kafka.client()
    topic = {"name": "orders", "num_partitions": 2, "replication_factor": 1}
    configs = [{"name": "retention.ms", "value": "86399999"}]
    made = await admin.call(19, 7, topics=[topic | {"configs": configs}, topic | {"name": "mine"}], timeout=1_000)
    topic_id = made.topics[0].topic_id
    for key, value in ((b"eu/1", EU), (b"us/1", US)):
        batch = build([(1_700_000_000_000, key, value, ())])
        data = [{"name": "orders", "partition_data": [{"index": 0, "records": batch}]}]
        await admin.call(0, 12, acks=-1, timeout=1_000, topic_data=data)
    protocols = [{"name": "range", "metadata": subscription("orders") + METADATA}]
    member = await enter(await kafka.client(), group="team", protocols=protocols)
    await sync(admin, member, group="team")
    for group in ("billing", "mine-group"):
        answer = await admin.call(8, 9, **committing(group, [{"name": "orders", "partitions": [offset()]}]))
        assert answer.topics[0].partitions[0].error_code == 0
    for group in ("nextgen", "mine-nextgen"):
        beaten = await admin.call(68, 1, **beating(group, "orders"))
        assert beaten.error_code == 0
    caller = Caller(admin)
    producer = (0, 0)
    for id in ("mine-id", "pay"):
        producer = await caller.begin(id)
        assert await caller.add(id, producer, 1) == [0]
        assert (await caller.produce(numbered(producer, 0, b"open"), 1, id=id))[0] == 0
    users = [{"name": "alice", "mechanism": 1, "iterations": 4_096, "salt": bytes(16), "salted_password": bytes(32)}]
    assert (await admin.call(51, 0, deletions=[], upsertions=users)).results[0].error_code == 0
    return World(topic_id, producer)
