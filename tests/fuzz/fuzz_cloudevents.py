"""CloudEvents in each of their three ways. What is taken comes out as an event again, with the same data."""

from __future__ import annotations

import json

from broker.record import Record
from gateway.endpoints.cloudevents_in import from_batch, from_binary, from_structured
from gateway.endpoints.cloudevents_out import to_structured
from gateway.errors import BodyTooLarge, RequestInvalid
from gateway.pipeline import Incoming

EVENT = {"specversion": "1.0", "id": "1", "source": "/", "type": "t", "time": "2026-11-23T13:00:00Z", "partitionkey": "k"}
CORPUS = [
    b"s" + json.dumps({**EVENT, "data": {"a": [1, None]}, "ext": True, "n": 7}).encode(),
    b"s" + json.dumps({**EVENT, "data_base64": "/wA=", "datacontenttype": "image/png"}).encode(),
    b"s" + json.dumps({**EVENT, "data": "text", "datacontenttype": "text/plain", "dataschema": "a:b"}).encode(),
    b"b" + json.dumps([EVENT, EVENT]).encode(),
    b"h" + b"\n".join(b"ce-%s: %s" % (name.encode(), text.encode()) for name, text in EVENT.items()) + b"\n\nbody",
    b'hce-specversion: 1.0\nce-id: "a\\"%20b"\nce-source: /%E2%82%AC\nce-type: t\ncontent-type: text/plain\n\n\xff',
]
EVENTS_MAX = 10


def one_input(data: bytes) -> None:
    form, body = data[:1], data[1:]
    try:
        taken = _take(form, body)
    except (RequestInvalid, BodyTooLarge):
        return
    for incoming in taken:
        headers = tuple((name.decode(), content) for name, content in incoming.headers)
        record = Record(0, incoming.timestamp_ms or 0, incoming.key, incoming.value, headers)
        again = from_structured(to_structured("orders", 0, record))
        assert dict(again.headers) == dict(incoming.headers)
        assert again.key == incoming.key


def _take(form: bytes, body: bytes) -> list[Incoming]:
    if form == b"s":
        return [from_structured(body)]
    if form == b"b":
        return from_batch(body, EVENTS_MAX)
    head, _, value = body.partition(b"\n\n")
    fields = (line.partition(b": ") for line in head.split(b"\n"))
    return [from_binary([(name.lower(), content) for name, _, content in fields], value)]
