"""DescribeClientQuotas: what the node's configuration says, and nothing more."""

from __future__ import annotations

from typing import Any

import pytest

API = 48
CLUSTER_DENIED, UNSUPPORTED, INVALID = 31, 35, 42


def user(match_type: int, match: str | None = None) -> dict[str, Any]:
    return {"entity_type": "user", "match_type": match_type, "match": match}


@pytest.fixture
async def limited(open_kafka: Any) -> Any:
    return await open_kafka(quotas__bytes_in_per_s=1_000_000, quotas__requests_per_s=500)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("components", "strict", "told"),
    [
        ([], False, True),
        ([], True, False),
        ([user(1)], True, True),
        ([user(2)], False, True),
        ([user(0, "alice")], False, False),
        ([{"entity_type": "client-id", "match_type": 2, "match": None}], False, False),
        ([{"entity_type": "ip", "match_type": 1, "match": None}], True, False),
    ],
)
async def test_the_default_users(limited: Any, version: int, components: Any, strict: bool, told: bool) -> None:
    client = await limited.client()
    answer = await client.call(API, version, components=components, strict=strict)
    assert answer.error_code == 0
    found = [({one.entity_type: one.entity_name for one in entry.entity}, entry.values) for entry in answer.entries]
    assert [entity for entity, _ in found] == ([{"user": None}] if told else [])
    if told:
        assert {value.key: value.value for value in found[0][1]} == {"producer_byte_rate": 1e6, "sprawl_request_rate": 500}


async def test_without_quotas_there_is_none(kafka: Any) -> None:
    answer = await (await kafka.client()).call(API, 1, components=[], strict=False)
    assert (answer.error_code, answer.entries) == (0, ())


@pytest.mark.parametrize(
    ("components", "code"),
    [
        ([user(1), user(2)], INVALID),
        ([user(0)], INVALID),
        ([user(1, "alice")], INVALID),
        ([user(3)], INVALID),
        ([{"entity_type": "group", "match_type": 1, "match": None}], UNSUPPORTED),
        ([user(1), {"entity_type": "ip", "match_type": 1, "match": None}], INVALID),
    ],
)
async def test_filters_that_contradict_themselves(limited: Any, components: Any, code: int) -> None:
    answer = await (await limited.client()).call(API, 1, components=components, strict=False)
    assert (answer.error_code, answer.entries) == (code, None)
    assert answer.error_message


async def test_not_for_everybody(kafka: Any) -> None:
    client = await kafka.client(kafka.token("all"))
    answer = await client.call(API, 1, components=[], strict=False)
    assert answer.error_code == CLUSTER_DENIED
