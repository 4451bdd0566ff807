"""DescribeConfigs, AlterConfigs, IncrementalAlterConfigs, ListConfigResources."""

from __future__ import annotations

from typing import Any

import pytest

from broker.topics.configs import RULES
from gateway.endpoints.kafka.broker_configs import STANDARD
from gateway.endpoints.kafka.topic_configs import FIXED

DESCRIBE, ALTER, INCREMENTAL, LIST = 32, 33, 44, 74
TOPIC, BROKER, LOGGER = 2, 4, 8
SET, DELETE, APPEND, SUBTRACT = 0, 1, 2, 3


@pytest.fixture
async def client(kafka: Any) -> Any:
    await kafka.node.broker.create_topic("orders", 1, {"retention.ms": "1000"})
    return await kafka.client()


async def describe(client: Any, kind: int, name: str, keys: Any = None, version: int = 4, **more: Any) -> Any:
    asked = {"resource_type": kind, "resource_name": name, "configuration_keys": keys}
    (result,) = (await client.call(DESCRIBE, version, resources=[asked], **more)).results
    return result


async def alter(client: Any, api: int, kind: int, name: str, configs: Any, **more: Any) -> int:
    if api == INCREMENTAL:
        given = [{"name": key, "config_operation": change, "value": value} for key, change, value in configs]
    else:
        given = [{"name": key, "value": value} for key, value in configs]
    asked = {"resource_type": kind, "resource_name": name, "configs": given}
    answer = await client.call(api, 1, resources=[asked], validate_only=more.get("validate_only", False))
    return int(answer.responses[0].error_code)


def configs(kafka: Any) -> dict[str, str]:
    return dict(kafka.node.broker.topic("orders").configs)


@pytest.mark.parametrize("version", range(1, 5))
async def test_every_version_describes_every_config_of_a_topic(client: Any, version: int) -> None:
    result = await describe(client, TOPIC, "orders", version=version)
    found = {config.name: config for config in result.configs}
    assert found.keys() == RULES.keys() | FIXED.keys()
    assert (found["retention.ms"].value, found["retention.ms"].config_source) == ("1000", 1)
    assert (found["retention.bytes"].value, found["retention.bytes"].config_source) == ("-1", 5)
    assert {name for name, config in found.items() if config.read_only} == set(FIXED)


async def test_synonyms_types_and_documentation(client: Any) -> None:
    plain = await describe(client, TOPIC, "orders", ["max.message.bytes", "none.such"])
    (config,) = plain.configs
    assert (config.synonyms, config.documentation, config.config_type) == ((), None, 3)
    told = await describe(client, TOPIC, "orders", None, include_synonyms=True, include_documentation=True)
    found = {config.name: config for config in told.configs}
    assert [(one.name, one.value, one.source) for one in found["max.message.bytes"].synonyms] == [
        ("message.max.bytes", "1048588", 5)
    ]
    assert [(one.name, one.value, one.source) for one in found["retention.ms"].synonyms] == [("retention.ms", "1000", 1)]
    assert all(config.documentation for config in told.configs)


async def test_the_broker_tells_what_it_is(client: Any) -> None:
    found = {config.name: config for config in (await describe(client, BROKER, "1", include_documentation=True)).configs}
    assert found.keys() == STANDARD.keys()
    assert len(found) > 300
    assert all(config.read_only and config.documentation for config in found.values())
    assert (found["node.id"].value, found["node.id"].config_source) == ("1", 4)
    assert (found["num.partitions"].value, found["num.partitions"].config_source) == ("4", 4)
    assert (found["log.retention.hours"].value, found["log.retention.hours"].config_source) == ("168", 5)
    secret = found["ssl.key.password"]
    assert (secret.is_sensitive, secret.value) == (True, None)
    assert (await describe(client, BROKER, "")).configs == ()


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [(TOPIC, "none", 3), (TOPIC, "bad name", 17), (BROKER, "2", 42), (BROKER, "x", 42), (LOGGER, "1", 42), (99, "x", 42)],
)
async def test_what_cannot_be_described(client: Any, kind: int, name: str, code: int) -> None:
    result = await describe(client, kind, name)
    assert (int(result.error_code), result.configs) == (code, ())


async def test_strangers_are_told_nothing(kafka: Any, client: Any) -> None:
    stranger = await kafka.client(kafka.token("none"))
    assert int((await describe(stranger, TOPIC, "orders")).error_code) == 29
    assert int((await describe(stranger, TOPIC, "none")).error_code) == 29
    assert int((await describe(stranger, BROKER, "1")).error_code) == 31
    assert await alter(stranger, INCREMENTAL, TOPIC, "orders", [("retention.ms", SET, "5")]) == 29
    assert await alter(stranger, ALTER, TOPIC, "none", []) == 29
    assert await alter(stranger, ALTER, BROKER, "1", []) == 31
    assert int((await stranger.call(LIST, 1, resource_types=())).error_code) == 31


async def test_altering_replaces_all(kafka: Any, client: Any) -> None:
    assert await alter(client, ALTER, TOPIC, "orders", [("retention.bytes", "5000")]) == 0
    assert configs(kafka) == {"retention.bytes": "5000"}
    assert await alter(client, ALTER, TOPIC, "orders", [], validate_only=True) == 0
    assert configs(kafka) == {"retention.bytes": "5000"}
    assert await alter(client, ALTER, TOPIC, "orders", []) == 0
    assert configs(kafka) == {}


async def test_incremental_changes(kafka: Any, client: Any) -> None:
    assert await alter(client, INCREMENTAL, TOPIC, "orders", [("cleanup.policy", APPEND, "compact")]) == 0
    assert configs(kafka) == {"retention.ms": "1000", "cleanup.policy": "delete,compact"}
    assert await alter(client, INCREMENTAL, TOPIC, "orders", [("cleanup.policy", SUBTRACT, "delete")]) == 0
    assert configs(kafka)["cleanup.policy"] == "compact"
    changes = [("retention.ms", DELETE, None), ("max.message.bytes", SET, " 2000 "), ("no.such", DELETE, None)]
    assert await alter(client, INCREMENTAL, TOPIC, "orders", changes) == 0
    assert configs(kafka) == {"cleanup.policy": "compact", "max.message.bytes": "2000"}


@pytest.mark.parametrize(
    ("kind", "name", "changes", "code"),
    [
        (TOPIC, "none", [("retention.ms", SET, "1")], 3),
        (TOPIC, "bad name", [("retention.ms", SET, "1")], 17),
        (TOPIC, "", [("retention.ms", SET, "1")], 42),
        (TOPIC, "orders", [("retention.ms", SET, "soon")], 40),
        (TOPIC, "orders", [("retention.ms", SET, None)], 42),
        (TOPIC, "orders", [("retention.ms", APPEND, "1")], 40),
        (TOPIC, "orders", [("retention.ms", 9, "1")], 42),
        (TOPIC, "orders", [("no.such", SET, "1")], 40),
        (TOPIC, "orders", [("no.such", SUBTRACT, "1")], 40),
        (TOPIC, "orders", [("flush.messages", SET, "1")], 40),
        (TOPIC, "orders", [("leader.replication.throttled.replicas", APPEND, "0:1")], 40),
        (TOPIC, "orders", [("retention.ms", SET, "1"), ("retention.ms", SET, "2")], 42),
        (BROKER, "1", [("log.retention.ms", SET, "1")], 42),
        (BROKER, "2", [], 42),
        (LOGGER, "1", [("root", SET, "INFO")], 42),
    ],
)
async def test_what_cannot_be_altered(kafka: Any, client: Any, kind: int, name: str, changes: Any, code: int) -> None:
    assert await alter(client, INCREMENTAL, kind, name, changes) == code
    assert configs(kafka) == {"retention.ms": "1000"}


async def test_a_resource_twice_is_not_altered(kafka: Any, client: Any) -> None:
    asked = {"resource_type": TOPIC, "resource_name": "orders", "configs": [{"name": "retention.ms", "value": "7"}]}
    answer = await client.call(ALTER, 2, resources=[asked, asked], validate_only=False)
    assert [int(one.error_code) for one in answer.responses] == [42]
    assert configs(kafka) == {"retention.ms": "1000"}


async def test_resources_with_configs(client: Any) -> None:
    answer = await client.call(LIST, 1, resource_types=())
    assert {(one.resource_type, one.resource_name) for one in answer.config_resources} == {(2, "orders"), (4, "1")}
    assert (await client.call(LIST, 0)).config_resources == ()
    assert int((await client.call(LIST, 1, resource_types=(99,))).error_code) == 35
