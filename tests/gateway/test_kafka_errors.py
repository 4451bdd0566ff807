"""Refusals in Kafka's codes."""

from __future__ import annotations

import logging

import pytest

from broker import errors as broker
from gateway.errors import KAFKA, TABLE, Busy, kafka_error
from gateway.wire.kafka.error_codes import ErrorCode
from security.errors import AccessDenied, CredentialsInvalid
from security.policy.model import Action


@pytest.mark.parametrize(
    ("action", "code"),
    [
        (Action.PUBLISH, 29),
        (Action.READ, 29),
        (Action.DESCRIBE, 29),
        (Action.GROUP, 30),
        (Action.ADMIN, 31),
        (Action.TOKENS, 31),
        (Action.METRICS, 31),
        (Action.TRANSACTION, 53),
    ],
)
def test_what_is_denied_is_told_by_what_it_is_about(action: Action, code: int) -> None:
    assert kafka_error(AccessDenied("token:a", action, "it", "no role"))[0] == code


def test_a_class_below_one_that_is_known_has_its_code() -> None:
    assert kafka_error(CredentialsInvalid("malformed"))[0] is ErrorCode.SASL_AUTHENTICATION_FAILED
    assert kafka_error(Busy("x", 1, 2))[0] is ErrorCode.NOT_ENOUGH_REPLICAS
    assert kafka_error(broker.UnknownTopic("orders")) == (
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        str(broker.UnknownTopic("orders")),
    )


def test_what_nobody_expected_tells_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        code, message = kafka_error(RuntimeError("the secret is hunter2"), "request-1")
    assert code is ErrorCode.UNKNOWN_SERVER_ERROR
    assert "hunter2" not in message
    assert [record.request_id for record in caplog.records] == ["request-1"]  # type: ignore[attr-defined]


def test_every_class_of_the_table_is_one_that_all_protocols_know() -> None:
    known = set(TABLE) | {Exception}
    assert [kind.__name__ for kind in KAFKA if kind not in known] == []
