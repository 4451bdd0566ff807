"""CloudEvents 1.0 in and out, with the `cloudevents` package as the referee of both ends: HTTP here, Kafka at the log."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cloudevents.core.bindings import http, kafka
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from broker.record import Record
from gateway.endpoints.cloudevents import OWN_TYPE
from gateway.endpoints.cloudevents_in import from_batch, from_binary, from_structured
from gateway.endpoints.cloudevents_out import attributes_of, to_binary, to_structured
from gateway.errors import BodyMalformed, BodyTooLarge, EventInvalid
from gateway.pipeline import Incoming

RECORDS = "/v1/topics/orders/records"
STRUCTURED = {"content-type": "application/cloudevents+json"}
BATCH = {"content-type": "application/cloudevents-batch+json"}
EVENT = {"specversion": "1.0", "id": "A-1", "source": "/shop/7", "type": "com.example.order"}
HEADERS = {f"ce-{name}": text for name, text in EVENT.items()}
ID = "018f3f5e-8c00-7abc-8def-0123456789ab"


def structured(**members: Any) -> Incoming:
    return from_structured(json.dumps({**EVENT, **members}).encode())


def record_of(incoming: Incoming, offset: int = 0) -> Record:
    headers = tuple((name.decode(), content) for name, content in incoming.headers)
    return Record(offset, incoming.timestamp_ms or 0, incoming.key, incoming.value, headers)


def headers_of(incoming: Incoming) -> dict[str, str]:
    return {name.decode(): (content or b"").decode() for name, content in incoming.headers}


class TestStructured:
    def test_all_attributes(self) -> None:
        incoming = structured(
            subject="7",
            time="2026-11-23T13:00:00.5Z",
            datacontenttype="application/json",
            dataschema="https://example.com/order",
            partitionkey="eu/7",
            urgent=True,
            retries=3,
            data={"amount": 12.50},
        )
        assert headers_of(incoming) == {
            "content-type": "application/json",
            "ce_specversion": "1.0",
            "ce_id": "A-1",
            "ce_source": "/shop/7",
            "ce_type": "com.example.order",
            "ce_subject": "7",
            "ce_time": "2026-11-23T13:00:00.5Z",
            "ce_dataschema": "https://example.com/order",
            "ce_partitionkey": "eu/7",
            "ce_urgent": "true",
            "ce_retries": "3",
        }
        assert (incoming.key, incoming.timestamp_ms, incoming.message_id) == (b"eu/7", 1795438800500, None)

    def test_an_id_that_can_be_a_message_id_is_one(self) -> None:
        assert structured(id=ID).message_id == ID

    @pytest.mark.parametrize(
        ("members", "value", "media_type"),
        [
            ({"data": {"a": [1, 2.50, "ü"]}}, json.dumps({"a": [1, 2.50, "ü"]}).encode(), "application/json"),
            ({"data": None}, b"null", "application/json"),
            ({"data": "text"}, b'"text"', "application/json"),
            ({"data": "text", "datacontenttype": "text/plain"}, b"text", "text/plain"),
            ({"data": "<a/>", "datacontenttype": "application/xml"}, b"<a/>", "application/xml"),
            ({"data": {}, "datacontenttype": "application/vnd.x+json"}, b"{}", "application/vnd.x+json"),
            ({"data_base64": "/wA="}, b"\xff\x00", None),
            ({"data_base64": "", "datacontenttype": "image/png"}, b"", "image/png"),
            ({}, b"", None),
            ({"subject": None, "data": 1}, b"1", "application/json"),
        ],
    )
    def test_data(self, members: dict[str, Any], value: bytes, media_type: str | None) -> None:
        incoming = structured(**members)
        assert (incoming.value, headers_of(incoming).get("content-type")) == (value, media_type)

    def test_times_that_no_record_can_have_stay_attributes(self) -> None:
        incoming = structured(time="1812-06-24T00:00:00Z")
        assert (incoming.timestamp_ms, headers_of(incoming)["ce_time"]) == (None, "1812-06-24T00:00:00Z")


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"specversion": "0.3"}, "specversion"),
    ({"specversion": 1.0}, "specversion"),
    ({"specversion": None}, "specversion"),
    ({"id": ""}, "id"),
    ({"id": None}, "id"),
    ({"id": {"a": 1}}, "id"),
    ({"source": ""}, "source"),
    ({"source": "a b"}, "source"),
    ({"source": "<>"}, "source"),
    ({"source": "%zz"}, "source"),
    ({"type": ""}, "type"),
    ({"type": ["a"]}, "type"),
    ({"subject": ""}, "subject"),
    ({"time": "yesterday"}, "time"),
    ({"time": "2026-02-30T00:00:00Z"}, "time"),
    ({"time": "2026-11-23T13:00:00"}, "time"),
    ({"time": "1795438800500"}, "time"),
    ({"time": 1795438800500}, "time"),
    ({"datacontenttype": "json"}, "datacontenttype"),
    ({"datacontenttype": "text/plain;\tcharset=utf-8"}, "datacontenttype"),
    ({"datacontenttype": "text/plain\r\nX: y"}, "datacontenttype"),
    ({"dataschema": "relative/path"}, "dataschema"),
    ({"dataschema": ""}, "dataschema"),
    ({"Upper": "x"}, "Upper"),
    ({"with-dash": "x"}, "with-dash"),
    ({"": "x"}, ""),
    ({"a" * 65: "x"}, "a" * 65),
    ({"ext": 1.5}, "ext"),
    ({"ext": 2**31}, "ext"),
    ({"ext": 10**400}, "ext"),
    ({"ext": {}}, "ext"),
    ({"ext": []}, "ext"),
    ({"ext": "a\x00b"}, "ext"),
    ({"ext": "a\nb"}, "ext"),
    ({"ext": "\ufffe"}, "ext"),
    ({"data": 1, "data_base64": "AA=="}, "data_base64"),
    ({"data_base64": "*"}, "data_base64"),
    ({"data_base64": 7}, "data_base64"),
    ({"data": {}, "datacontenttype": "text/plain"}, "data"),
]


@pytest.mark.parametrize(("members", "attribute"), BROKEN)
async def test_broken_attributes_are_refused_by_name(door: Any, members: dict[str, Any], attribute: str) -> None:
    answer = await door.post(RECORDS, {**EVENT, **members}, headers=STRUCTURED)
    assert (answer.status, answer.slug, answer.problem["attribute"]) == (400, "event-invalid", attribute)
    answer = await door.post(RECORDS, [EVENT, {**EVENT, **members}], headers=BATCH)
    if answer.slug == "event-invalid":  # a body's shape is looked at before its attributes
        assert (answer.problem["attribute"], answer.problem["index"]) == (attribute, 1)
    assert list(door.engine.topics()) == []


@pytest.mark.parametrize("attribute", list(EVENT))
async def test_missing_attributes(door: Any, attribute: str) -> None:
    event = {name: text for name, text in EVENT.items() if name != attribute}
    answer = await door.post(RECORDS, event, headers=STRUCTURED)
    assert (answer.slug, answer.problem["attribute"]) == ("event-invalid", attribute)
    headers = {name: text for name, text in HEADERS.items() if name != f"ce-{attribute}"}
    answer = await door.call("POST", RECORDS, b"x", headers={"content-type": "text/plain"} | headers)
    assert (answer.slug, answer.problem["attribute"]) == ("event-invalid", attribute)


class TestBinary:
    def fields(self, **headers: str) -> list[tuple[bytes, bytes]]:
        return [(name.replace("_", "-").encode(), text.encode("latin-1")) for name, text in (HEADERS | headers).items()]

    def test_attributes_and_data(self) -> None:
        incoming = from_binary([*self.fields(ce_subject="7"), (b"content-type", b"text/plain"), (b"accept", b"*/*")], b"data")
        assert headers_of(incoming) == {
            "content-type": "text/plain",
            "ce_specversion": "1.0",
            "ce_id": "A-1",
            "ce_source": "/shop/7",
            "ce_type": "com.example.order",
            "ce_subject": "7",
        }
        assert incoming.value == b"data"

    def test_encoded_values(self) -> None:
        rows = [
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
            ('"quoted \\" %22"', 'quoted " "'),
            ("%25", "%"),
            ("plain", "plain"),
        ]
        for given_text, text in rows:
            assert headers_of(from_binary(self.fields(ce_subject=given_text), b""))["ce_subject"] == text

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("ce_subject", "%FF"),
            ("ce_subject", "%00"),
            ("ce_subject", "%0D%0ASet-Cookie:a"),
            ("ce_datacontenttype", "text/plain"),
            ("ce_data", "x"),
            ("ce_data_base64", "x"),
            ("ce_time", "now"),
            ("ce_specversion", "2.0"),
            ("ce_source", ""),
        ],
    )
    def test_broken(self, name: str, text: str) -> None:
        with pytest.raises(EventInvalid):
            from_binary(self.fields(**{name: text}), b"")

    def test_twice(self) -> None:
        with pytest.raises(EventInvalid, match="twice"):
            from_binary([*self.fields(), (b"ce-id", b"B")], b"")


class TestBatch:
    def test_many(self) -> None:
        body = json.dumps([{**EVENT, "id": str(number), "data": number} for number in range(100)]).encode()
        assert [incoming.value for incoming in from_batch(body, 100)] == [b"%d" % number for number in range(100)]

    def test_too_many(self) -> None:
        with pytest.raises(BodyTooLarge, match="records_max"):
            from_batch(json.dumps([EVENT] * 101).encode(), 100)

    def test_a_body_of_empty_objects_ends_at_the_first(self) -> None:
        with pytest.raises(BodyMalformed, match=r"\$\[0\]"):
            from_batch(b"[" + b",".join([b"{}"] * 100_000) + b"]", 100)

    @pytest.mark.parametrize("body", [b"[]", b"{}", b"", b"[1]", b"[[]]", b"[{]", b"\xff", b"null", b"[" * 10_000])
    def test_what_is_none(self, body: bytes) -> None:
        with pytest.raises(BodyMalformed):
            from_batch(body, 100)


class TestReferee:
    """The package reads what we write, and we read what it writes."""

    def event(self, data: Any, **attributes: Any) -> CloudEvent:
        return CloudEvent({**EVENT, "subject": "Euro € %", "ext": "a b", **attributes}, data)

    def test_binary_in(self) -> None:
        message = http.to_binary(self.event({"a": 1}, datacontenttype="application/json"), JSONFormat())
        incoming = from_binary([(name.lower().encode(), text.encode()) for name, text in message.headers.items()], message.body)
        assert headers_of(incoming)["ce_subject"] == "Euro € %"
        self.kafka_sees(incoming, {"a": 1})

    def test_structured_in(self) -> None:
        message = http.to_structured(self.event(b"\xff\x00", datacontenttype="image/png"), JSONFormat())
        self.kafka_sees(from_structured(message.body), b"\xff\x00")

    def kafka_sees(self, incoming: Incoming, data: Any) -> None:
        headers = {name.decode(): content or b"" for name, content in incoming.headers}
        event = kafka.from_binary(kafka.KafkaMessage(headers, incoming.key, incoming.value or b""), JSONFormat())
        assert (event.get_id(), event.get_source(), event.get_type()) == (EVENT["id"], EVENT["source"], EVENT["type"])
        assert (event.get_subject(), event.get_extension("ext"), event.get_data()) == ("Euro € %", "a b", data)

    @given(subject=st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=20), data=st.binary(max_size=50))
    def test_binary_out(self, subject: str, data: bytes) -> None:
        record = record_of(structured(subject=subject, data_base64=base64.b64encode(data).decode(), datacontenttype="image/png"))
        attributes = attributes_of(record)
        assert attributes is not None
        headers = {name.decode(): text.decode() for name, text in to_binary(attributes)}
        event = http.from_binary(http.HTTPMessage(headers | {"content-type": "image/png"}, record.value or b""), JSONFormat())
        assert event.get_subject() == subject

    @given(
        data=st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_structured_out_and_in_again(self, data: Any) -> None:
        record = record_of(structured(subject="s", partitionkey="k", data=data))
        whole = to_structured("orders", 0, record)
        event = http.from_structured(http.HTTPMessage(STRUCTURED, whole), JSONFormat())
        assert (event.get_subject(), event.get_data()) == ("s", data)
        again = from_structured(whole)
        assert (again.value, again.key, headers_of(again)) == (
            record.value,
            b"k",
            headers_of(structured(subject="s", partitionkey="k", data=data)),
        )


class TestOverHttp:
    async def test_structured_in_binary_out(self, door: Any) -> None:
        answer = await door.post("/v1/records/orders/k", {**EVENT, "subject": "ü", "data": {"a": 1}}, headers=STRUCTURED)
        assert answer.status == 200
        found = await door.get("/v1/records/orders/k")
        assert (found.body, found.headers["content-type"]) == (b'{"a": 1}', "application/json")
        assert {name: found.headers[f"ce-{name}"] for name in EVENT} == EVENT
        assert found.headers["ce-subject"] == "%C3%BC"
        assert not [name for name in found.headers if name.startswith("sprawl-header-ce")]

    async def test_binary_in_structured_out(self, door: Any) -> None:
        headers = {"content-type": "application/json", "ce-partitionkey": "k"} | HEADERS
        assert (await door.call("POST", RECORDS, b'{"a":1}', headers=headers)).status == 200
        found = await door.get("/v1/records/orders/k", headers={"accept": "application/cloudevents+json"})
        assert found.headers["content-type"] == "application/cloudevents+json"
        assert json.loads(found.body) == {
            **EVENT,
            "partitionkey": "k",
            "datacontenttype": "application/json",
            "data": {"a": 1},
        }

    async def test_any_record_can_be_an_event(self, door: Any) -> None:
        await door.call("POST", "/v1/records/orders/k?timestamp=1500", b"\xff", headers={"content-type": "image/png"})
        [event] = json.loads((await door.get(RECORDS, headers={"accept": "application/cloudevents-batch+json"})).body)
        assert event.pop("id")
        partition = event.pop("source").removeprefix("/v1/topics/orders/partitions/")
        assert 0 <= int(partition) < 4
        assert event == {
            "specversion": "1.0",
            "type": OWN_TYPE,
            "time": "1970-01-01T00:00:01.500Z",
            "datacontenttype": "image/png",
            "partitionkey": "k",
            "data_base64": "/w==",
        }

    async def test_pages_as_batches(self, door: Any) -> None:
        await door.post(RECORDS, [{**EVENT, "id": str(number)} for number in range(5)], headers=BATCH)
        answer = await door.get(f"{RECORDS}?limit=3", headers={"accept": "application/cloudevents-batch+json"})
        assert (answer.headers["content-type"], answer.headers["at-end"]) == ("application/cloudevents-batch+json", "false")
        rest = await door.get(f"{RECORDS}?cursor={answer.headers['next-cursor']}", headers={"accept": BATCH["content-type"]})
        assert sorted(event["id"] for event in json.loads(answer.body) + json.loads(rest.body)) == list("01234")
        for partition in range(4):
            page = await door.get(f"/v1/topics/orders/partitions/{partition}/records", headers={"accept": BATCH["content-type"]})
            assert page.headers["next-offset"] == str(len(json.loads(page.body)))

    async def test_what_a_kafka_producer_wrote_in_structured_mode(self, door: Any) -> None:
        event = json.dumps({**EVENT, "data": 1}).encode()
        headers = [(b"content-type", b"application/cloudevents+json; charset=utf-8")]
        await door.publish("orders", Incoming(b"k", event, headers))
        found = await door.get("/v1/records/orders/k", headers={"accept": "application/cloudevents+json"})
        assert json.loads(found.body) == {**EVENT, "data": 1}

    async def test_broken_events_of_others_come_out_as_records(self, door: Any) -> None:
        headers = [(b"ce_specversion", b"1.0"), (b"ce_id", b"\xff"), (b"ce_source", b"/"), (b"ce_type", b"t")]
        await door.publish("orders", Incoming(b"k", b"v", headers))
        found = await door.get("/v1/records/orders/k", headers={"accept": "application/cloudevents+json"})
        assert json.loads(found.body)["type"] == OWN_TYPE
        assert "ce-id" not in (await door.get("/v1/records/orders/k")).headers

    async def test_other_formats_and_keys(self, door: Any) -> None:
        for media_type in ("application/cloudevents+avro", "application/cloudevents", "application/cloudevents-batch+xml"):
            answer = await door.call("POST", RECORDS, b"{}", headers={"content-type": media_type})
            assert (answer.status, answer.slug) == (415, "media-type-unsupported")
        for key, status in (("k", 200), ("other", 400)):
            answer = await door.post("/v1/records/orders/k", {**EVENT, "partitionkey": key}, headers=STRUCTURED)
            assert answer.status == status
