"""Fuzz target: bodies of records, as NDJSON, as one object and as an array; and stored records on their way out."""

from __future__ import annotations

import msgspec

from broker.record import CONTENT_TYPE_HEADER, Record
from gateway.endpoints.records_json import decode_records, to_answer, to_incoming
from gateway.errors import GatewayError
from tests.fuzz.refusals import check_refusal

RECORDS_MAX = 20

CORPUS = [
    b'{"key":"eu/7","value":{"amount":12},"headers":{"source":"till"},"timestamp":1767225600000,"partition":3}',
    b'[{"key":"a","text":"t"},{"key64":"AP8=","value64":"AP8="},{"value":null,"id":"01890000-0000-7000-8000-000000000000"}]',
    b'{"value":1}\n{"text":"\\u00e9","headers":{"a":["b",null],"content-type":"x/y"}}\n{"value64":"","headers64":{"n":"AA=="}}\n',
    b'{"value":"2026-11-23","timestamp":"2026-11-23T13:00:00.123456Z"}\n\n{"value":[1,2.5e-9,true,null,{"a":{}}]}',
    b"[" * 2000 + b"]" * 2000,
    b'{"value":' + b"[" * 2000 + b"]" * 2000 + b"}",
    b'{"text":"\\ud83d\\ude00 \\ud83d"}',
    b"[" + b'{"value":0},' * 30 + b'{"value":0}]',
]


def one_input(data: bytes) -> None:
    for lines in (True, False):
        try:
            records = decode_records(data, lines=lines, records_max=RECORDS_MAX)
            assert 1 <= len(records) <= RECORDS_MAX
            incoming = to_incoming(records)
        except GatewayError as error:
            check_refusal(error)
            continue
        assert len(incoming) == len(records)
        for one in incoming:
            assert len(one.value or b"") <= len(data)
            assert one.timestamp_ms is None or isinstance(one.timestamp_ms, int)
    _out(data)


def _out(data: bytes) -> None:
    """Any value of any media type goes out as JSON, and comes in again as it was stored."""
    for media_type in (None, b"application/json", b"text/plain; charset=utf-8"):
        headers = ((CONTENT_TYPE_HEADER, media_type), (data[:8].decode("utf-8", "replace"), data[8:16]))
        record = Record(7, 0, data[16:24], data, headers if media_type is not None else ())
        answer = msgspec.json.encode(to_answer("orders", 3, record))
        read = msgspec.json.decode(answer)
        assert b"\n" not in answer
        if media_type is None:
            given = {name: read[name] for name in ("key", "key64", "value", "text", "value64") if name in read}
            (incoming,) = to_incoming(decode_records(msgspec.json.encode(given), lines=False, records_max=1))
            assert (incoming.key, incoming.value) == (record.key, record.value)
