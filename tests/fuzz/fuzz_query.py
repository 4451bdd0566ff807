"""Fuzz target: what a request line holds: query strings, times, addresses, positions."""

from __future__ import annotations

from collections.abc import Callable

from broker.delivery.position import AtOffset, AtTime, Cursor
from broker.topics.addresses import legal_topic_name, parse_address
from gateway.endpoints.query import FIELDS_MAX, OFFSET_MAX, Query, decode_base64, parse_cursor, parse_number, parse_time
from gateway.endpoints.timestamps import parse_timestamp_ms
from gateway.errors import ParameterInvalid
from tests.fuzz.refusals import check_refusal

CORPUS = [
    b"offset=17&partition=3&limit=100",
    b"cursor=1042-7&wait_ms=5000&follow=true&order=newest",
    b"timestamp=2026-11-23T13:00:00.5%2B02:00&key=eu%2F7",
    b"timestamp=1760000000000&key64=AP8%3D",
    b"offset=earliest",
    b"2026-11-23T13:00:00Z",
    b"0001-01-01T00:00:00+23:59",
    b"9999-12-31T23:59:59.999999999-23:59",
    b"9223372036854775807-4294967295",
    b"orders/$key/AP8",
    b"orders/eu/7",
    b"a=" + b"%C3%A9" * 20,
    b"&".join(b"f%d=1" % n for n in range(FIELDS_MAX + 2)),
]

_READERS: tuple[Callable[[Query], object], ...] = (
    lambda query: query.position("latest"),
    lambda query: query.number("limit", 1, 1000, 1),
    lambda query: query.number("wait_ms", 0),
    lambda query: query.flag("follow"),
    lambda query: query.choice("order", "oldest", "newest"),
    Query.key,
    Query.timestamp_ms,
    lambda query: query.text("prefix"),
    Query.finish,
)


def one_input(data: bytes) -> None:
    _query(data)
    for text in {data.decode("utf-8", "replace"), data.decode("latin-1")}:
        _texts(text)
        _address(text)


def _query(data: bytes) -> None:
    for first in range(len(_READERS)):
        try:
            query = Query(data)
            for read in (*_READERS[first:], *_READERS[:first]):
                _check(read(query))
        except ParameterInvalid as error:
            check_refusal(error)


def _check(value: object) -> None:
    match value:
        case AtOffset(partition, offset):
            assert 0 <= partition <= 2**31 - 1
            assert 0 <= offset <= OFFSET_MAX
        case AtTime(timestamp_ms):
            assert abs(timestamp_ms) < 10**15
        case Cursor():
            assert Cursor.parse(str(value)) == value


def _texts(text: str) -> None:
    try:
        assert abs(parse_timestamp_ms(text)) < 10**15
    except ValueError as error:
        check_refusal(error)
    try:
        cursor = Cursor.parse(text)
        assert Cursor.parse(str(cursor)) == cursor
    except ValueError as error:
        check_refusal(error)
    for parse in (parse_cursor, parse_number, parse_time, decode_base64):
        try:
            parse("name", text)
        except ParameterInvalid as error:
            check_refusal(error)


def _address(text: str) -> None:
    address = parse_address(text)
    assert parse_address(address.text()) == address
    if legal_topic_name(address.topic):
        assert len(address.topic) <= 249
