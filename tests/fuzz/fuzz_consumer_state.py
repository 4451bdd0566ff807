"""Fuzz target: the state of a consumer as it is kept in the log: what decodes encodes again, the rest is refused by name."""

from __future__ import annotations

import msgspec

from broker.delivery.consumer_options import ConsumerOptions
from broker.delivery.position import Cursor
from broker.delivery.standing import VERSION, Kept, Pending, Run, Value, decode, decode_head, encode
from broker.errors import FormatUnsupported, StorageDamaged
from tests.fuzz.refusals import check_refusal

NOW_MS, CLOCK_MS, WAIT_MS_MAX = 1_760_000_000_000, 5_000, 86_400_000
TOPICS = {bytes(16): "orders", b"\x01" * 16: "readings"}
COUNT_MAX = 100_000
HEAD = Kept(VERSION, "ann", "w", "orders/#", b"eu", (("a", b"b"),), ConsumerOptions(), NOW_MS, NOW_MS, 10, 2, None, 3)

CORPUS = [
    msgspec.msgpack.encode(Value(HEAD, list(TOPICS), [Run(0, 0, 5, 3, 1, 2, 1, 0), Run(1, 3, 9, 8, 1, 1, 2, NOW_MS + 50)])),
    msgspec.msgpack.encode(Value(HEAD, [], [])),
    msgspec.msgpack.encode(Value(HEAD, [], [Run(7, 0, 5, 3, 1, 2, 1, 0)])),
    msgspec.msgpack.encode(Value(msgspec.structs.replace(HEAD, version=VERSION + 1), [], [])),
    msgspec.msgpack.encode([[VERSION + 5, "a new field"], 1]),
]


def one_input(data: bytes) -> None:
    try:
        head = decode_head(data)
        if _records(data) > COUNT_MAX:
            return  # what the log holds is sealed: such a value could only be our own, and those are bounded
        found, pending = decode(data, TOPICS, NOW_MS, CLOCK_MS, WAIT_MS_MAX)
    except (FormatUnsupported, StorageDamaged) as error:
        check_refusal(error)
        return
    assert found == head
    assert all(CLOCK_MS <= one.at_ms <= CLOCK_MS + WAIT_MS_MAX for one in pending)
    by_cursor: dict[Cursor, Pending] = {one.cursor: one for one in pending}
    again = decode(encode(head, by_cursor.values(), NOW_MS, CLOCK_MS), TOPICS, NOW_MS, CLOCK_MS, WAIT_MS_MAX)
    assert again == (head, sorted(by_cursor.values(), key=lambda one: one.cursor))


def _records(data: bytes) -> int:
    try:
        return sum(abs(run.count) for run in msgspec.msgpack.decode(data, type=Value).runs)
    except msgspec.MsgspecError:
        return 0
