"""As much of a Kafka client as `sprawl check` needs: one connection that proves who it is, publishes a record and reads it again.

Versions are those of Kafka 2.6 and later. What goes over the wire is put together by kio and not by the node's own codec.
"""

from __future__ import annotations

import io
import socket
import ssl
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from gateway.cli.connection import Connection
from gateway.cli.failures import Refused, Unreachable
from gateway.cli.kafka_clients import USER_NAME

WAIT_S = 10.0
FETCH_WAIT_S = 1.0
RECORDS_BYTES_MAX = 1024 * 1024
ANSWER_BYTES_MAX = 16 * 1024 * 1024
PRODUCE, FETCH, SASL_HANDSHAKE, SASL_AUTHENTICATE = 0, 1, 17, 36


class KafkaConnection:
    """To `connection.kafka`, as `SASL_SSL://host:port`. Raises `Unreachable`, and `Refused` with Kafka's words for it."""

    def __init__(self, connection: Connection, client_id: str = "sprawl") -> None:
        assert connection.kafka is not None
        self._address = connection.kafka
        self._client_id = client_id
        self._correlation = count(1)
        protocol, _, where = connection.kafka.partition("://")  # no URL: its scheme has an underscore
        address = urlsplit(f"//{where}")
        host, port = address.hostname or "", address.port or 0
        try:
            plain = socket.create_connection((host, port), timeout=WAIT_S)
            encrypted = protocol.endswith("SSL")
            self._socket = connection.tls().wrap_socket(plain, server_hostname=host) if encrypted else plain
        except OSError as error:  # ssl.SSLError is one
            raise Unreachable(f"no Kafka listener at {self._address}", str(error)) from None
        if connection.token is not None:
            self._authenticate(connection.token)

    def close(self) -> None:
        with suppress(OSError, ssl.SSLError):
            self._socket.close()

    def __enter__(self) -> KafkaConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def produce(self, topic: str, batch: bytes) -> None:
        """Into partition 0, acknowledged by all."""
        schema = _schema("produce.v9", "request")
        data = schema.TopicProduceData(name=topic, partition_data=(schema.PartitionProduceData(index=0, records=batch),))
        request = schema.ProduceRequest(transactional_id=None, acks=-1, timeout=timedelta(seconds=WAIT_S), topic_data=(data,))
        answer = self._call(PRODUCE, request, _schema("produce.v9", "response").ProduceResponse)
        landed = answer.responses[0].partition_responses[0]
        _check(landed.error_code, landed.error_message)

    def fetch(self, topic: str) -> bytes:
        """Whole batches of partition 0 from its beginning, as they are stored; empty where none came in time."""
        schema = _schema("fetch.v12", "request")
        wanted = schema.FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=RECORDS_BYTES_MAX)
        topics = (schema.FetchTopic(topic=topic, partitions=(wanted,)),)
        request = schema.FetchRequest(
            max_wait=timedelta(seconds=FETCH_WAIT_S), min_bytes=1, topics=topics, forgotten_topics_data=()
        )
        answer = self._call(FETCH, request, _schema("fetch.v12", "response").FetchResponse)
        _check(answer.error_code)
        found = answer.responses[0].partitions[0]
        _check(found.error_code)
        return bytes(found.records or b"")

    def _authenticate(self, token: str) -> None:
        request = _schema("sasl_handshake.v1", "request").SaslHandshakeRequest(mechanism="PLAIN")
        shaken = self._call(SASL_HANDSHAKE, request, _schema("sasl_handshake.v1", "response").SaslHandshakeResponse)
        _check(shaken.error_code)
        proof = _schema("sasl_authenticate.v2", "request").SaslAuthenticateRequest(auth_bytes=f"\0{USER_NAME}\0{token}".encode())
        proved = self._call(SASL_AUTHENTICATE, proof, _schema("sasl_authenticate.v2", "response").SaslAuthenticateResponse)
        _check(proved.error_code, proved.error_message)

    def _call(self, api: int, request: Any, response: type[Any]) -> Any:
        from kio.serial import entity_reader, entity_writer

        header_kind = type(request).__header_schema__
        header: dict[str, Any] = {
            "request_api_key": api,
            "request_api_version": int(type(request).__version__),
            "correlation_id": next(self._correlation),
            "client_id": self._client_id,
        }
        out = io.BytesIO()
        entity_writer(header_kind)(out, header_kind(**header))
        entity_writer(type(request))(out, request)
        answer = self._exchange(out.getvalue())
        # After the correlation id the headers of flexible versions have an empty list of tags.
        return entity_reader(response)(answer, 5 if response.__flexible__ else 4)[0]

    def _exchange(self, body: bytes) -> bytes:
        try:
            self._socket.sendall(len(body).to_bytes(4, "big") + body)
            size = int.from_bytes(self._receive(4), "big")
            if not 4 <= size <= ANSWER_BYTES_MAX:
                raise Unreachable(f"{self._address} answers in another protocol", f"a response of {size} bytes")
            return self._receive(size)
        except OSError as error:
            raise Unreachable(f"the Kafka listener at {self._address} did not answer", str(error)) from None

    def _receive(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._socket.recv(size - len(parts))
            if not part:
                raise ConnectionResetError("it closed the connection")
            parts += part
        return bytes(parts)


def _schema(module: str, side: str) -> Any:
    """Imported when it is needed: all of kio's schemas take a second."""
    return import_module(f"kio.schema.{module}.{side}")


def _check(code: Any, message: str | None = None) -> None:
    if code.value:
        raise Refused({"title": f"Kafka's error {code.value}, {code.name.upper()}", "detail": message or ""})
