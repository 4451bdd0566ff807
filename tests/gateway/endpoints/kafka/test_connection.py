"""What a Kafka client can do to a connection: everything malformed stays its own problem, and answers keep their order."""

from __future__ import annotations

import asyncio
import base64
import socket
from typing import Any

import pytest

from tests.gateway.endpoints.kafka.conftest import request_bytes

PRODUCE, FETCH, METADATA, API_VERSIONS = 0, 1, 3, 18


async def until(condition: Any) -> None:
    """Let the loop turn until it holds; the test's own timeout ends it otherwise."""
    while not condition():  # noqa: ASYNC110  any state of the node under test
        await asyncio.sleep(0.002)


def fetch(topic: str, *, wait_ms: int) -> dict[str, Any]:
    """Fields of Fetch 11 from the start of partition 0."""
    place = {"partition": 0, "fetch_offset": 0, "partition_max_bytes": 100_000}
    return {
        "max_wait": wait_ms,
        "min_bytes": 1,
        "max_bytes": 100_000,
        "session_epoch": -1,
        "topics": [{"topic": topic, "partitions": [place]}],
    }


async def still_served(kafka: Any) -> bool:
    client = await kafka.client()
    return bool((await client.call(METADATA, 12, topics=[])).cluster_id)


class TestApiVersions:
    @pytest.mark.parametrize("version", range(5))
    async def test_tells_the_table_before_authentication(self, kafka: Any, version: int) -> None:
        client = await kafka.connect()
        named = {"client_software_name": "test", "client_software_version": "1.0"} if version >= 3 else {}
        answer = await client.call(API_VERSIONS, version, **named)
        told = {row.api_key: (row.min_version, row.max_version) for row in answer.api_keys}
        assert answer.error_code == 0
        assert told[METADATA] == (0, 13)
        assert told[PRODUCE][0] == 0  # or librdkafka turns compression off (KAFKA-18659)
        assert 4 not in told  # LeaderAndIsr is between brokers

    async def test_an_unknown_version_is_answered_as_0(self, kafka: Any) -> None:
        client = await kafka.connect()
        client.write(b"\x00\x12\x00\x63\x00\x00\x00\x07\x00\x04test\x00\x05what\x05ever\x00")
        answer = await client.receive(API_VERSIONS, 0, correlation_id=7)
        assert answer.error_code == 35
        assert [(row.api_key, row.min_version, row.max_version) for row in answer.api_keys] == [(18, 0, 4)]
        assert (await client.call(API_VERSIONS, 0)).error_code == 0  # and the connection goes on

    async def test_a_name_of_the_software_that_is_none(self, kafka: Any) -> None:
        client = await kafka.connect()
        answer = await client.call(API_VERSIONS, 3, client_software_name="-", client_software_version="1")
        assert answer.error_code == 42

    async def test_features_of_transactions(self, kafka: Any) -> None:
        client = await kafka.connect()
        for version, minimum in ((3, 1), (4, 0)):
            answer = await client.call(API_VERSIONS, version, client_software_name="t", client_software_version="1")
            supported = {feature.name: (feature.min_version, feature.max_version) for feature in answer.supported_features}
            assert supported["transaction.version"] == (minimum, 2)
            assert answer.finalized_features_epoch == 1


class TestMalformed:
    @pytest.mark.parametrize(
        "stream",
        [
            b"\xff\xff\xff\xff",  # a negative length
            b"\x7f\xff\xff\xff",  # a length of 2 GiB
            b"\x00\x08\x00\x01" + bytes(4),  # half a megabyte and a byte, before authentication
            b"\x00\x00\x00\x00",  # no header
            b"\x00\x00\x00\x07\x00\x12\x00\x00\x00\x00\x00",  # half a header
            b"\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x01\x7f\xff",  # a client id that is not there
            b"\x00\x00\x00\x0a\x27\x0f\x00\x00\x00\x00\x00\x01\xff\xff",  # an unknown API
            b"\x00\x00\x00\x0a\xff\xff\x00\x00\x00\x00\x00\x01\xff\xff",  # a negative one
            b"\x00\x00\x00\x0a\x00\x03\x00\x63\x00\x00\x00\x01\xff\xff",  # an unknown version
            b"\x00\x00\x00\x0a\x00\x03\xff\xff\x00\x00\x00\x01\xff\xff",  # a negative one
            b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        ],
    )
    async def test_ends_its_connection_and_no_other(self, kafka: Any, stream: bytes) -> None:
        client = await kafka.connect()
        client.writer.write(stream)
        assert await client.closed()
        assert await still_served(kafka)

    @pytest.mark.parametrize("body", [b"", b"\xff\xff\xff\xff\x0f", b"\x02" + bytes(16)])
    async def test_a_body_that_cannot_be_read(self, kafka: Any, body: bytes) -> None:
        client = await kafka.client()
        client.write(b"\x00\x03\x00\x0c\x00\x00\x00\x07\x00\x04test\x00" + body)
        assert await client.closed()
        assert kafka.count("refused_total", protocol="kafka", reason="request-malformed") == 1
        assert await still_served(kafka)

    async def test_every_truncated_prefix_then_the_end(self, kafka: Any) -> None:
        whole = request_bytes(METADATA, 12, 1, topics=[])
        framed = len(whole).to_bytes(4, "big") + whole
        for end in range(0, len(framed), 3):
            client = await kafka.client()
            client.writer.write(framed[:end])
            client.writer.write_eof()
            assert await client.closed()
        assert await still_served(kafka)

    async def test_byte_by_byte(self, kafka: Any) -> None:
        client = await kafka.client()
        whole = request_bytes(METADATA, 12, 99, topics=[])
        for byte in len(whole).to_bytes(4, "big") + whole:
            client.writer.write(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.receive(METADATA, 12, 99)).cluster_id

    async def test_a_large_request_is_read_in_place(self, kafka: Any) -> None:
        client = await kafka.client()
        names = [{"name": f"topic-{number:05}"} for number in range(10_000)]
        answer = await client.call(METADATA, 9, topics=names, allow_auto_topic_creation=False)
        assert [topic.name for topic in answer.topics[-2:]] == ["topic-09998", "topic-09999"]
        assert {topic.error_code for topic in answer.topics} == {3}
        assert kafka.node.addresses

    async def test_a_request_above_the_bound(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__request_bytes_max=1_000, kafka__open_request_bytes_max=1_000)
        client = await kafka.client()
        client.write(request_bytes(METADATA, 12, 5, topics=[]).ljust(1_000, b"\0"))
        await client.receive(METADATA, 12, 5)
        client.writer.write((1_001).to_bytes(4, "big"))
        assert await client.closed()
        assert kafka.count("refused_total", protocol="kafka", reason="request-too-large") == 1


class TestBeforeAuthentication:
    @pytest.mark.parametrize("api", [(METADATA, 12), (19, 7), (60, 0), (10, 4)])
    async def test_a_request_ends_the_connection_and_is_audited(self, kafka: Any, api: tuple[int, int]) -> None:
        client = await kafka.connect()
        client.send(*api)
        assert await client.closed()
        assert kafka.count("refused_total", protocol="kafka", reason="unauthenticated") == 1
        assert kafka.count("requests_total", protocol="kafka", operation="Metadata", outcome="ok") == 0

    async def test_produce_too(self, kafka: Any) -> None:
        client = await kafka.connect()
        client.send(PRODUCE, 9, acks=-1, timeout=1_000, topic_data=[])
        assert await client.closed()

    async def test_whoever_says_nothing_is_closed(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__auth_ms=1)
        client = await kafka.connect()
        assert await client.closed()
        assert kafka.count("refused_total", protocol="kafka", reason="auth-timeout") == 1

    async def test_anonymous_where_the_listener_allows(self, open_kafka: Any) -> None:
        kafka = await open_kafka(listeners__kafka__anonymous=True)
        client = await kafka.connect()
        assert (await client.call(METADATA, 12, topics=None)).topics == ()
        answer = await client.call(METADATA, 12, topics=[{"name": "orders"}])
        assert answer.topics[0].error_code == 29  # who has no rights is told so


class TestOrder:
    async def test_answers_leave_in_the_order_of_the_requests(self, kafka: Any) -> None:
        client = await kafka.client()
        sent = [(METADATA, 12, client.send(METADATA, 12, topics=[])) for _ in range(20)]
        sent += [(60, 0, client.send(60, 0)), (METADATA, 4, client.send(METADATA, 4, topics=None))]
        for api, version, correlation_id in sent:
            await client.receive(api, version, correlation_id)

    async def test_more_than_may_be_under_way(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__requests_in_flight_max=1)
        client = await kafka.client()
        sent = [client.send(METADATA, 12, topics=[]) for _ in range(500)]
        for correlation_id in sent:
            await client.receive(METADATA, 12, correlation_id)

    async def test_a_pending_fetch_holds_its_place(self, kafka: Any) -> None:
        client = await kafka.client()
        await client.call(METADATA, 12, topics=[{"name": "orders"}])
        waiting = client.send(FETCH, 11, **fetch("orders", wait_ms=100))
        behind = client.send(60, 0)
        await client.receive(FETCH, 11, waiting)
        assert (await client.receive(60, 0, behind)).cluster_id

    async def test_what_came_behind_one_that_waits_is_begun_with_it(self, kafka: Any) -> None:
        client = await kafka.client()
        await client.call(METADATA, 12, topics=[{"name": "orders"}])
        fetches = [client.send(FETCH, 11, **fetch("orders", wait_ms=100)) for _ in range(2)]
        await client.writer.drain()
        await until(lambda: any(connection._waiting is not None for connection in kafka.node._kafka.connections))
        behind = [client.send(60, 0), client.send(60, 0)]
        for correlation_id in fetches:
            await client.receive(FETCH, 11, correlation_id)
        for correlation_id in behind:
            assert (await client.receive(60, 0, correlation_id)).cluster_id

    async def test_a_head_unlike_the_one_before_is_read_anew(self, kafka: Any) -> None:
        client = await kafka.client()
        await client.call(METADATA, 12, topics=[{"name": "orders"}])
        for version in (11, 11, 4, 11):
            for client_id in ("test", "test", "tes", "tests", None, "", "tost"):
                wanted = fetch("orders", wait_ms=0) if version == 11 else {"topics": [], "max_wait": 0}
                sent = client.send(FETCH, version, client_id=client_id, **wanted)
                answer = await client.receive(FETCH, version, sent)
                assert [row.topic for row in answer.responses] == (["orders"] if version == 11 else [])
        client.write(b"\x00\x01\x00\x0b\x00\x00\x00\x07\x00\x04tos")
        assert await client.closed()

    async def test_a_pending_fetch_dies_with_its_connection(self, kafka: Any) -> None:
        client = await kafka.client()
        await client.call(METADATA, 12, topics=[{"name": "orders"}])
        client.send(FETCH, 11, **fetch("orders", wait_ms=60_000))
        await client.writer.drain()
        await until(lambda: any(connection._slots for connection in kafka.node._kafka.connections))
        tasks = {slot.task for connection in kafka.node._kafka.connections for slot in connection._slots}
        await client.close()
        await until(lambda: all(task.done() for task in tasks))
        assert all(task.cancelled() for task in tasks)
        await until(lambda: kafka.count("connections", protocol="kafka") == 0)


class TestBounds:
    async def test_connections(self, open_kafka: Any) -> None:
        kafka = await open_kafka(limits__connections_max=2)
        first, second = await kafka.client(), await kafka.client()
        assert await (await kafka.connect()).closed()
        assert kafka.count("refused_total", protocol="kafka", reason="connections") == 1
        await first.close()
        await until(lambda: kafka.count("connections", protocol="kafka") == 1)
        assert await still_served(kafka)
        assert (await second.call(METADATA, 12, topics=[])).cluster_id

    async def test_idle(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__idle_ms=1)
        client = await kafka.client()
        assert await client.closed()

    async def test_a_request_that_drips(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__request_pause_ms=1)
        client = await kafka.client()
        client.writer.write(b"\x00\x00\x00\xff\x00\x03")
        assert await client.closed()
        assert kafka.count("refused_total", protocol="kafka", reason="request-timeout") == 1

    async def test_a_client_that_reads_nothing(self, open_kafka: Any) -> None:
        kafka = await open_kafka(limits__write_stall_ms=300)
        admin, client = await kafka.client(), await kafka.client()
        await admin.call(19, 7, topics=[{"name": "wide", "num_partitions": 500, "replication_factor": 1}], timeout=1000)
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        for _ in range(1_000):  # some 13 MB of answers
            client.send(METADATA, 12, topics=[{"name": "wide"}])
        await until(lambda: kafka.count("refused_total", protocol="kafka", reason="write-stalled"))
        await until(lambda: kafka.count("connections", protocol="kafka") == 1)
        assert await still_served(kafka)

    async def test_memory_of_requests_is_given_back(self, kafka: Any) -> None:
        client = await kafka.client()
        client.writer.write((1_000_000).to_bytes(4, "big") + bytes(10))
        await client.writer.drain()
        memory = next(iter(kafka.node._kafka.connections)).node.memory
        await until(lambda: memory.held_bytes == 1_000_000)
        await client.close()
        await until(lambda: memory.held_bytes == 0)

    async def test_beyond_the_memory_of_requests_others_wait(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__received_bytes_max=300_000)
        greedy, other = await kafka.client(), await kafka.client()
        greedy.writer.write((400_000).to_bytes(4, "big") + bytes(100_000))
        memory = next(iter(kafka.node._kafka.connections)).node.memory
        await until(lambda: memory.held_bytes == 400_000)
        assert (await other.call(METADATA, 12, topics=[])).cluster_id  # small ones never wait
        names = [{"name": f"{number:0100}"} for number in range(2_000)]
        other.send(METADATA, 9, topics=names, allow_auto_topic_creation=False)
        await until(lambda: memory._waiting)
        assert memory.held_bytes == 400_000
        await greedy.close()
        assert len((await other.receive(METADATA, 9)).topics) == 2_000
        assert memory.held_bytes == 0

    async def test_a_slow_request_makes_room_for_those_that_wait(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__received_bytes_max=300_000, kafka__request_pause_ms=300)
        greedy, other = await kafka.client(), await kafka.client()
        greedy.writer.write((400_000).to_bytes(4, "big") + bytes(100))
        memory = next(iter(kafka.node._kafka.connections)).node.memory
        await until(lambda: memory.held_bytes == 400_000)
        names = [{"name": f"{number:0100}"} for number in range(2_000)]
        other.send(METADATA, 9, topics=names, allow_auto_topic_creation=False)
        for _ in range(1_000_000):  # never pauses, and never ends
            if kafka.count("refused_total", protocol="kafka", reason="request-timeout"):
                break
            greedy.writer.write(b"x")
            await asyncio.sleep(0.01)
        assert len((await other.receive(METADATA, 9)).topics) == 2_000


class TestStopping:
    async def test_what_waits_is_given_up_and_idle_connections_end(self, open_kafka: Any) -> None:
        kafka = await open_kafka()
        idle, waiting = await kafka.client(), await kafka.client()
        await waiting.call(METADATA, 12, topics=[{"name": "orders"}])
        waiting.send(FETCH, 11, **fetch("orders", wait_ms=60_000))
        await until(lambda: any(connection._slots for connection in kafka.node._kafka.connections))
        await kafka.node.stop()
        assert await idle.closed()
        assert await waiting.closed()


class TestListener:
    async def test_not_where_it_is_switched_off(self, open_kafka: Any) -> None:
        kafka = await open_kafka(listeners__kafka__enabled=False)
        assert set(kafka.node.addresses) == {"http"}

    async def test_is_described(self, kafka: Any) -> None:
        described = kafka.node._describe()["listeners"]
        assert described["kafka"] == {"host": kafka.host, "port": kafka.port, "tls": "plain"}

    async def test_the_cluster_id_is_the_nodes(self, kafka: Any) -> None:
        answer = await (await kafka.client()).call(METADATA, 12, topics=[])
        assert base64.urlsafe_b64decode(answer.cluster_id + "==").hex() == kafka.node._describe()["cluster_id"]
