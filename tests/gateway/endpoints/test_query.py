"""Query parameters: typed, each once, and nothing unknown."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.delivery.position import AtOffset, AtTime, Cursor, Position
from gateway.endpoints.query import FIELDS_MAX, Query
from gateway.errors import ParameterInvalid


def test_each_parameter_is_taken_once_and_the_rest_refused() -> None:
    query = Query(b"limit=5&colour=red")
    assert query.number("limit", 1) == 5
    assert query.number("limit", 1) == 1
    with pytest.raises(ParameterInvalid, match="colour: there is no such parameter"):
        query.finish()


def test_nothing_given() -> None:
    query = Query(b"")
    assert (query.text("a"), query.number("b", 7), query.flag("c"), query.key(), query.timestamp_ms()) == (
        None,
        7,
        False,
        None,
        None,
    )
    assert query.choice("acks", "durable", "none") == "durable"
    query.finish()


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (b"", "latest"),
        (b"offset=earliest", "earliest"),
        (b"offset=latest", "latest"),
        (b"offset=17&partition=3", AtOffset(3, 17)),
        (b"timestamp=1000", AtTime(1_000)),
        (b"timestamp=1970-01-01T00:00:01Z", AtTime(1_000)),
        (b"cursor=12-3", Cursor(12, 3)),
    ],
)
def test_positions(text: bytes, position: Position) -> None:
    query = Query(text)
    assert query.position("latest") == position
    query.finish()


@pytest.mark.parametrize(
    ("text", "take", "named"),
    [
        (b"limit=", lambda query: query.number("limit", 1), "limit"),
        (b"limit=-1", lambda query: query.number("limit", 1), "limit"),
        (b"limit=1.0", lambda query: query.number("limit", 1), "limit"),
        (b"limit=0x1", lambda query: query.number("limit", 1), "limit"),
        (b"limit=%D9%A3", lambda query: query.number("limit", 1), "limit"),
        (b"limit=11", lambda query: query.number("limit", 1, 10), "limit"),
        (b"limit=0", lambda query: query.number("limit", 1, 10, 1), "limit"),
        (b"limit=" + b"9" * 400, lambda query: query.number("limit", 1), "limit"),
        (b"flag=yes", lambda query: query.flag("flag"), "flag"),
        (b"acks=all", lambda query: query.choice("acks", "durable", "none"), "acks"),
        (b"key=a&key64=YQ", lambda query: query.key(), "key64"),
        (b"key64=Y", lambda query: query.key(), "key64"),
        (b"key64=%C3%A4", lambda query: query.key(), "key64"),
        (b"key64=a%00b", lambda query: query.key(), "key64"),
        (b"timestamp=yesterday", lambda query: query.timestamp_ms(), "timestamp"),
        (b"cursor=12", lambda query: query.position("latest"), "cursor"),
        (b"offset=5", lambda query: query.position("latest"), "offset"),
        (b"offset=-5&partition=0", lambda query: query.position("latest"), "offset"),
        (b"offset=5&partition=x", lambda query: query.position("latest"), "partition"),
        (b"offset=earliest&cursor=1-1", lambda query: query.position("latest"), "offset"),
        (b"timestamp=5&cursor=1-1", lambda query: query.position("latest"), "timestamp"),
    ],
)
def test_wrong_values_are_refused_by_name(text: bytes, take: Callable[[Query], object], named: str) -> None:
    with pytest.raises(ParameterInvalid) as refusal:
        take(Query(text))
    assert refusal.value.name == named


@pytest.mark.parametrize(
    "text",
    [b"a=1&a=2", b"a=%FF", b"\xff=1", "ä=1".encode(), b"&".join(b"p%d=1" % number for number in range(FIELDS_MAX + 1))],
)
def test_queries_that_are_none(text: bytes) -> None:
    with pytest.raises(ParameterInvalid):
        Query(text)


@given(st.binary(max_size=40))
def test_a_key_in_either_base64_padded_or_not(key: bytes) -> None:
    for coded in (base64.b64encode(key), base64.urlsafe_b64encode(key)):
        for text in (coded, coded.rstrip(b"=")):
            escaped = text.replace(b"+", b"%2B").replace(b"/", b"%2F").replace(b"=", b"%3D")
            assert Query(b"key64=" + escaped).key() == key


def test_keys_as_text() -> None:
    assert Query(b"key=").key() == b""
    assert Query(b"key=eu%2F7+%C3%A4").key() == "eu/7 ä".encode()


@given(st.binary(max_size=60))
def test_no_query_raises_anything_else(text: bytes) -> None:
    try:
        query = Query(text)
        query.position("latest")
        query.key()
        query.finish()
    except ParameterInvalid:
        pass
