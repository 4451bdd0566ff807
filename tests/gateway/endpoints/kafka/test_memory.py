"""What was refused is forgotten: no error keeps the request that it is about.

An error that is stored in an answer holds the frames that it was raised through, and they the request and the answer. The garbage
collector looks at such a cycle late (it counts objects, not megabytes), and into structs with `gc=False` never.
"""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest

from broker.batch import build
from broker.errors import Overloaded
from tests.gateway.endpoints.kafka.conftest import request_bytes
from tests.gateway.endpoints.kafka.test_transactions import numbered

BATCH_BYTES = 200_000
TIMES = 20
GROWTH_BYTES_MAX = 4 * BATCH_BYTES  # buffers of both ends of the connection


async def leaves_nothing_behind(client: Any, api: int, version: int, **fields: Any) -> None:
    """Without the collector's help. The request is made once: what is measured is the node."""
    raw = request_bytes(api, version, 1, **fields)
    client.write(raw)
    await client.frame()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(TIMES):
            client.write(raw)
            await client.frame()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert after - before < GROWTH_BYTES_MAX, f"{after - before} bytes are kept"


def batch(key: bytes | None = b"k", **more: Any) -> bytes:
    return build([(1_700_000_000_000, key, os.urandom(BATCH_BYTES), ())], **more)


def producing(topic: str, records: bytes, **more: Any) -> dict[str, Any]:
    data = [{"name": topic, "partition_data": [{"index": 0, "records": records}]}]
    return {"acks": -1, "timeout": 1, "topic_data": data, **more}


@pytest.fixture
async def client(kafka: Any) -> Any:
    found = await kafka.client()
    topic = {"num_partitions": 1, "replication_factor": 1}
    compacted = {"name": "compacted", "configs": [{"name": "cleanup.policy", "value": "compact"}]}
    await found.call(19, 7, topics=[topic | {"name": "orders"}, topic | compacted], timeout=1_000)
    return found


async def code(client: Any, **fields: Any) -> int:
    answer = await client.call(0, 9, **fields)
    return int(answer.responses[0].partition_responses[0].error_code)


REFUSED: Mapping[str, dict[str, Any]] = {
    "corrupt": producing("orders", batch()[:-1] + b"\x7f"),
    "of an unknown topic": producing("nowhere", batch()),
    "without a key on a compacted topic": producing("compacted", batch(None)),
    "out of order": producing("orders", batch(producer_id=5, producer_epoch=0, base_sequence=9)),
    "of no transaction": producing("orders", numbered((5, 0), 0, os.urandom(BATCH_BYTES)), transactional_id="nobody's"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_batches(client: Any, name: str) -> None:
    if name == "out of order":
        first = build([(1_700_000_000_000, b"k", b"v", ())], producer_id=5, producer_epoch=0, base_sequence=0)
        assert await code(client, **producing("orders", first)) == 0
    assert await code(client, **REFUSED[name]) != 0
    await leaves_nothing_behind(client, 0, 9, **REFUSED[name])


async def test_batches_without_the_right(kafka: Any, client: Any) -> None:
    stranger = await kafka.client(kafka.token("none"))
    assert await code(stranger, **producing("orders", batch())) == 29
    await leaves_nothing_behind(stranger, 0, 9, **producing("orders", batch()))


async def test_batches_that_the_log_does_not_take(kafka: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise Overloaded("append_queue_bytes_max", 0, 1)

    assert await code(client, **producing("orders", batch())) == 0
    monkeypatch.setattr(kafka.node.broker, "submit", full)
    assert await code(client, **producing("orders", batch())) == 19
    await leaves_nothing_behind(client, 0, 9, **producing("orders", batch()))


@pytest.mark.parametrize("name", ["orders", "nowhere", "("])
async def test_fetches_that_fail(kafka: Any, client: Any, name: str) -> None:
    places = [{"partition": one, "fetch_offset": 99, "partition_max_bytes": 10} for one in range(1_000)]
    asked = {"max_wait": 0, "session_epoch": -1, "topics": [{"topic": name, "partitions": places}]}
    await leaves_nothing_behind(client, 1, 11, **asked)
    await leaves_nothing_behind(await kafka.client(kafka.token("none")), 1, 11, **asked)
