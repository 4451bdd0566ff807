"""The table of refusals: complete, without secrets, and the same everywhere."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Iterator

import pytest

import broker
import gateway
import security
from broker.delivery.position import Cursor, CursorAhead
from broker.errors import (
    AppendUnknown,
    BrokerError,
    Closed,
    OffsetOutOfRange,
    Overloaded,
    StorageDamaged,
    UnknownPartition,
    UnknownTopic,
)
from gateway.errors import (
    TABLE,
    UNEXPECTED,
    BodyMalformed,
    Busy,
    Draining,
    GatewayError,
    MethodNotAllowed,
    RecordInvalid,
    answer_headers,
    problem,
    translate,
)
from security.errors import (
    AccessDenied,
    CredentialsInvalid,
    CredentialsMissing,
    KeyWrong,
    QuotaExceeded,
    SecurityError,
    TokenExpired,
    TokenRevoked,
)


def every_error() -> Iterator[type[Exception]]:
    """All classes of the three trees, wherever they are defined."""
    for package in (broker, security, gateway):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    pending: list[type[Exception]] = [BrokerError, SecurityError, GatewayError]
    while pending:
        found = pending.pop()
        yield found
        pending += [kind for kind in found.__subclasses__() if kind.__module__.split(".")[0] in ("broker", "security", "gateway")]


def test_every_error_of_the_three_trees_has_its_own_row() -> None:
    missing = [f"{kind.__module__}.{kind.__qualname__}" for kind in every_error() if kind not in TABLE]
    assert missing == []


def test_problem_types_name_one_error_each() -> None:
    slugs = [row.slug for row in TABLE.values() if row is not UNEXPECTED]
    assert len(slugs) == len(set(slugs))


def test_facts_are_fields_of_the_error() -> None:
    error = OffsetOutOfRange("orders", 3, 99, 10, 50)
    document = problem(error, "r1")
    assert document == {
        "type": "/problems/offset-out-of-range",
        "title": "The offset is out of range",
        "status": 416,
        "detail": str(error),
        "instance": "r1",
        "topic": "orders",
        "partition": 3,
        "offset": 99,
        "log_start": 10,
        "high_watermark": 50,
    }


def test_a_fact_that_is_none_is_left_out() -> None:
    assert "where" not in problem(BodyMalformed("it holds no record"), "r")
    assert problem(BodyMalformed("bad", "line 3"), "r")["where"] == "line 3"


@pytest.mark.parametrize(
    ("error", "status", "close"),
    [
        (UnknownTopic("t"), 404, None),
        (UnknownPartition("t", 9, 4), 404, None),
        (CursorAhead(Cursor(9), 3), 416, None),
        (Overloaded("append queue", 10, 50), 503, None),
        (Closed(), 503, 1001),
        (Draining(), 503, 1001),
        (CredentialsMissing(), 401, 4401),
        (TokenExpired("ab", 0), 401, 4401),
        (TokenRevoked("ab"), 401, 4403),
        (AccessDenied("token:ab", "read", "topic t", "it has no role"), 403, None),
        (QuotaExceeded("token:ab", "bytes_in", 1500), 429, None),
        (RecordInvalid(3, "bad"), 400, None),
        (Busy("rest.waits_max", 3, 100), 503, None),
        (ZeroDivisionError(), 500, 1011),
    ],
)
def test_statuses_and_close_codes(error: Exception, status: int, close: int | None) -> None:
    assert (translate(error).status, translate(error).websocket_close) == (status, close)


def test_a_new_subclass_is_translated_as_the_class_above_it() -> None:
    class Newer(UnknownTopic):
        pass

    assert translate(Newer("t")).slug == "unknown-topic"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("s3cret inner text"),
        StorageDamaged("/data/s3cret/00001.log", "cut"),
        KeyWrong("kek-1", "/keys/s3cret"),
        AppendUnknown("[Errno 5] /data/s3cret"),
    ],
)
def test_what_is_not_the_callers_business_is_logged_and_not_told(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        document = problem(error, "request-17")
    assert "s3cret" not in str(document)
    assert document["status"] >= 500
    logged = [record for record in caplog.records if record.exc_info and record.exc_info[1] is error]
    assert [record.__dict__["request_id"] for record in logged] == ["request-17"]


def test_why_a_credential_failed_is_not_told() -> None:
    assert "malformed" not in str(problem(CredentialsInvalid("malformed"), "r"))


def test_refusals_that_are_told_are_not_logged_as_failures(caplog: pytest.LogCaptureFixture) -> None:
    problem(UnknownTopic("t"), "r")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (CredentialsMissing(), {b"www-authenticate": b'Bearer realm="sprawl"'}),
        (CredentialsInvalid("x"), {b"www-authenticate": b'Bearer realm="sprawl", error="invalid_token"'}),
        (TokenExpired("ab", 0), {b"www-authenticate": b'Bearer realm="sprawl", error="invalid_token"'}),
        (MethodNotAllowed("PUT", ("GET", "HEAD")), {b"allow": b"GET, HEAD"}),
        (QuotaExceeded("p", "requests", 1), {b"retry-after": b"1"}),
        (QuotaExceeded("p", "requests", 1001), {b"retry-after": b"2"}),
        (Overloaded("append queue", 1, 100), {b"retry-after": b"1"}),
        (Closed(), {b"retry-after": b"1"}),
        (UnknownTopic("t"), {}),
    ],
)
def test_headers_of_refusals(error: Exception, headers: dict[bytes, bytes]) -> None:
    assert dict(answer_headers(error)) == headers


def test_a_body_that_cannot_be_read_is_not_told_back_whole() -> None:
    """Found by fuzzing: msgspec quotes a value that is none of an enumeration, however long it is."""
    error = BodyMalformed("Invalid value '" + "[" * 100_000 + "'", "$.op")
    assert len(str(error)) < 400
    assert str(error).endswith("..., at $.op")
