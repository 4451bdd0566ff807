"""One record through a running node, in by each protocol and out by each: what `sprawl check` does.

A topic of its own, `sprawl-check-<random>`, is made and deleted again. Every record carries a marker nobody else publishes; a way
out passes when it gives back exactly the marker that went in.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote

import msgspec

from broker.batch import build, split, walk
from gateway.cli.client import Client
from gateway.cli.failures import Failure, Unreachable
from gateway.cli.feed import SUBPROTOCOL, Feed
from gateway.cli.positions import Position

TOPIC_PREFIX = "sprawl-check-"
KEY = "round/trip"
WAIT_S = 10.0


class Trip(msgspec.Struct, frozen=True):
    """`way_in` and `way_out` name protocols; `problem` is empty where the record came through."""

    way_in: str
    way_out: str
    took_ms: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem


class RoundTrip:
    """Ways in and ways out are named once, so that a new protocol is checked against all others."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._topic = TOPIC_PREFIX + secrets.token_hex(6)

    def run(self) -> Iterator[Trip]:
        ways_in: Mapping[str, Callable[[str], None]] = {"rest": self._publish_rest, "websocket": self._publish_websocket}
        ways_out: Mapping[str, Callable[[str], str | None]] = {
            "rest": self._read_page,
            "rest (latest value)": self._read_latest,
            "sse": self._read_events,
            "websocket": self._read_websocket,
        }
        if self._client.connection.kafka is not None:
            ways_in = {**ways_in, "kafka": self._publish_kafka}
            ways_out = {**ways_out, "kafka": self._fetch_kafka}
        with self._topic_made():
            for way_in, publish in ways_in.items():
                marker = f"{way_in} {secrets.token_hex(12)}"
                began = time.monotonic()
                try:
                    publish(marker)
                except Failure as failure:
                    yield Trip(way_in, "", _since_ms(began), _in_words(failure))
                    continue
                yield Trip(way_in, "", _since_ms(began))
                for way_out, read in ways_out.items():
                    yield self._read(way_in, way_out, read, marker)

    def _read(self, way_in: str, way_out: str, read: Callable[[str], str | None], marker: str) -> Trip:
        began = time.monotonic()
        try:
            found = read(marker)
        except Failure as failure:
            return Trip(way_in, way_out, _since_ms(began), _in_words(failure))
        problem = "" if found == marker else f"the record did not come: {found!r} did instead" if found else "nothing came"
        return Trip(way_in, way_out, _since_ms(began), problem)

    @contextmanager
    def _topic_made(self) -> Iterator[None]:
        self._client.call("POST", "/v1/topics", document={"name": self._topic, "partitions": 1})
        try:
            yield
        finally:
            self._client.call("DELETE", f"/v1/topics/{self._topic}")

    # In

    def _publish_rest(self, marker: str) -> None:
        self._client.call("POST", self._address(), document={"text": marker})

    def _publish_websocket(self, marker: str) -> None:
        from websockets.exceptions import WebSocketException

        from gateway.cli.websocket_client import WebSocketClient

        connection = self._client.connection
        message = {"op": "publish", "ref": 1, "topic": self._topic, "key": KEY, "text": marker}
        try:
            with WebSocketClient(connection, SUBPROTOCOL) as socket:
                socket.send(json.dumps(message))
                for _ in range(2):  # ready, then the answer
                    answer = json.loads(socket.recv(timeout=WAIT_S))
                    if answer["op"] == "ack":
                        return
        except (OSError, TimeoutError, WebSocketException) as error:
            raise Unreachable(f"no WebSocket at {connection.websocket_url}", str(error)) from None
        raise Unreachable("the WebSocket did not acknowledge", json.dumps(answer)[:300])

    def _publish_kafka(self, marker: str) -> None:
        from gateway.cli.kafka_connection import KafkaConnection

        with KafkaConnection(self._client.connection) as kafka:
            kafka.produce(self._topic, build([(time.time_ns() // 1_000_000, KEY.encode(), marker.encode(), ())]))

    # Out: each waits for the marker at most WAIT_S

    def _read_page(self, marker: str) -> str | None:
        path = f"/v1/topics/{self._topic}/partitions/0/records"
        page = self._client.call("GET", path, query={"offset": "earliest", "wait_ms": "1000"})
        return _newest(record.get("text") for record in page["records"])

    def _read_latest(self, marker: str) -> str | None:
        record = self._client.call("GET", self._address(), query={"envelope": "true"})
        text: str | None = record.get("text")
        return text

    def _read_events(self, marker: str) -> str | None:
        found: str | None = None
        until = time.monotonic() + WAIT_S
        for line in self._client.lines(f"/v1/topics/{self._topic}/events", query={"from": "earliest"}, wait_s=WAIT_S):
            if line.startswith("data:"):
                found = json.loads(line.removeprefix("data:")).get("text")
            if found == marker or time.monotonic() > until:
                break
        return found

    def _read_websocket(self, marker: str) -> str | None:
        feed = Feed(self._client.connection, self._topic, KEY, Position("earliest"), notice=lambda text: None)
        found: str | None = None
        until = time.monotonic() + WAIT_S
        for page in feed:
            found = _newest(json.loads(record).get("text") for record in page.records)
            if found == marker or time.monotonic() > until:
                break
        feed.close()
        return found

    def _fetch_kafka(self, marker: str) -> str | None:
        from gateway.cli.kafka_connection import KafkaConnection

        with KafkaConnection(self._client.connection) as kafka:
            batches = split(kafka.fetch(self._topic))
        return _newest(record.value.decode() for batch in batches for record in walk(batch) if record.value is not None)

    def _address(self) -> str:
        return f"/v1/records/{self._topic}/{quote(KEY)}"


def _newest(texts: Iterator[str | None]) -> str | None:
    found = list(texts)
    return found[-1] if found else None


def _since_ms(began: float) -> float:
    return round((time.monotonic() - began) * 1_000, 1)


def _in_words(failure: Failure) -> str:
    return f"{failure.title}: {failure.detail}" if failure.detail else failure.title
