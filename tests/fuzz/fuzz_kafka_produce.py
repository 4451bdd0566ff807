"""Fuzz target: Produce and Fetch requests, parsed by hand. The first byte says which API and version.

Nothing but MessageInvalid is raised; records are views of what was received; what was parsed and is built again as an answer can
be read by kio.
"""

from __future__ import annotations

import importlib
from typing import Any

from kio.serial import entity_reader

from gateway.wire.kafka import fetch, produce
from gateway.wire.kafka.errors import MessageInvalid
from tests.gateway.wire.kafka.test_fetch import request_bytes as fetch_bytes
from tests.gateway.wire.kafka.test_produce import request_bytes as produce_bytes

PRODUCES = range(produce.LOW, produce.HIGH + 1)
FETCHES = range(fetch.LOW, fetch.HIGH + 1)

CORPUS = [
    *(bytes([version]) + produce_bytes(version, transactional_id="t") for version in PRODUCES),
    *(bytes([0x80 + version]) + fetch_bytes(version) for version in FETCHES),
]


def one_input(data: bytes) -> None:
    if not data:
        return
    body = memoryview(data)[1:]
    if data[0] & 0x80:
        _fetch(fetch.LOW + (data[0] & 0x7F) % len(FETCHES) if data[0] & 0x7F not in FETCHES else data[0] & 0x7F, body)
    else:
        _produce(produce.LOW + data[0] % len(PRODUCES) if data[0] not in PRODUCES else data[0], body)


def _produce(version: int, body: memoryview) -> None:
    try:
        request = produce.parse_produce(version, body)
    except MessageInvalid:
        return
    for _, partitions in request.topics:
        for _, records in partitions:
            assert records is None or records.obj is body.obj
    answers = [(ref, [produce.PartitionAnswer(n, 0) for n, _ in partitions]) for ref, partitions in request.topics]
    schema: Any = importlib.import_module(f"kio.schema.produce.v{version}.response")
    _read(schema.ProduceResponse, produce.build_produce(version, answers))


def _fetch(version: int, body: memoryview) -> None:
    try:
        request = fetch.parse_fetch(version, body)
    except MessageInvalid:
        return
    answers = [(ref, [fetch.PartitionFetched(one.partition, batches=[b"x"]) for one in some]) for ref, some in request.topics]
    schema: Any = importlib.import_module(f"kio.schema.fetch.v{version}.response")
    _read(schema.FetchResponse, b"".join(fetch.build_fetch(version, answers)))


def _read(kind: Any, body: bytes) -> None:
    _, size = entity_reader(kind)(body, 0)
    assert size == len(body)
