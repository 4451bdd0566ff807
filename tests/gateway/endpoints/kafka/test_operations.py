"""The table of operations: each row is served as it is told, in versions that exist."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.endpoints.kafka import metadata
from gateway.endpoints.kafka.operations import ALWAYS, OF_GROUPS, OF_USERS, table
from gateway.wire.kafka import messages

# Apache Kafka 4.3.1 as its ApiVersions answers, where a client could ask for more of us than of it.
KAFKA_4_3 = {
    **{0: (0, 13), 1: (4, 18), 2: (1, 11), 3: (0, 13), 8: (2, 10), 9: (1, 10), 10: (0, 6), 11: (0, 9), 12: (0, 4), 13: (0, 5)},
    **{14: (0, 5), 15: (0, 6), 16: (0, 5), 17: (0, 1), 18: (0, 4), 19: (2, 7), 20: (1, 6), 21: (0, 2), 22: (0, 5), 23: (2, 4)},
    **{24: (0, 5), 25: (0, 4), 26: (0, 5), 28: (0, 5), 32: (1, 4), 33: (0, 2), 35: (1, 4), 36: (0, 2), 37: (0, 3), 42: (0, 2)},
    **{43: (0, 2), 44: (0, 1), 46: (0, 1), 47: (0, 0), 48: (0, 1), 50: (0, 0), 51: (0, 0), 60: (0, 2), 61: (0, 0), 65: (0, 0)},
    **{66: (0, 2), 68: (0, 1), 69: (0, 1), 74: (0, 1), 75: (0, 0)},
}
# What clients of today cannot do without (measured: librdkafka 2.16, aiokafka 0.14, kafka-python 3.0, Java 4.3).
AT_LEAST = {
    **{0: (0, 12), 1: (4, 12), 2: (1, 8), 3: (0, 12), 8: (2, 9), 9: (1, 9), 10: (0, 4), 11: (0, 9), 12: (0, 4), 13: (0, 5)},
    **{14: (0, 5), 17: (0, 1), 19: (2, 7), 20: (1, 6), 21: (0, 2), 22: (0, 4), 24: (0, 3), 25: (0, 3), 26: (0, 3), 28: (0, 3)},
    **{32: (1, 4), 36: (0, 2), 37: (0, 3), 44: (0, 1), 68: (0, 1), 69: (0, 1)},
}
ROWS = (*ALWAYS, *OF_GROUPS, *OF_USERS)


def node(**services: Any) -> Any:
    return SimpleNamespace(**{"groups": None, "users": None} | services)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_version_that_is_told_has_its_schemas(row: Any) -> None:
    for version in range(max(row.low, row.served_from), row.high + 1):
        assert row.serves(version)
        assert messages.request_schema(row.api, version).__api_key__ == row.api
        assert messages.response_schema(row.api, version).__version__ == version
    assert not row.serves(row.high + 1)
    assert not row.serves(-1)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_no_more_than_apache_kafka(row: Any) -> None:
    low, high = KAFKA_4_3[row.api]
    assert low <= row.low <= row.high <= high


def test_no_less_than_clients_need() -> None:
    told = {row.api: (row.low, row.high) for row in ROWS}
    for api, (low, high) in AT_LEAST.items():
        assert told[api][0] <= low, api
        assert told[api][1] >= high, api


def test_produce_is_told_from_0_and_served_from_3() -> None:
    """librdkafka turns compression off where version 0 is not told (KAFKA-18659)."""
    produce = table(node())[0]
    assert (produce.low, produce.served_from) == (0, 3)
    assert not produce.serves(2)


def test_what_has_no_service_is_not_told() -> None:
    bare, whole = table(node()), table(node(groups=object(), users=object()))
    assert set(whole) - set(bare) == {row.api for row in (*OF_GROUPS, *OF_USERS)}
    assert list(whole) == sorted(whole)


def test_only_what_leads_to_authentication_is_open() -> None:
    assert {row.name for row in ROWS if row.open} == {"ApiVersions", "SaslHandshake", "SaslAuthenticate"}


def test_one_row_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.endpoints.kafka.operations.ALWAYS", (*ALWAYS, *metadata.OPERATIONS))
    with pytest.raises(ValueError, match="two rows"):
        table(node())
