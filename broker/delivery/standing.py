"""Where a durable consumer stands, as it is kept in the log's state (`StateSpace.POSITION`).

    settled | settled  PENDING  settled  PENDING  PENDING | not delivered yet
            ^ position                                      ^ next

`next` is a cursor; what is before it and not among the pending records is settled: acknowledged, dead-lettered, or not for this
consumer. So however far acknowledgements run ahead of the oldest open record, only the open ones are kept, and they are bounded
(`ack_pending_max`). Open records stand there as runs: neighbours in one batch with the same history are one entry.

A record is known by the cursor *after* it, which is its alone and orders all records as they were committed.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Annotated

import msgspec

from broker.delivery.consumer_options import IN_FLIGHT_MAX, ConsumerOptions
from broker.delivery.filter import Filter, FilterInvalid
from broker.delivery.position import Cursor
from broker.errors import FormatUnsupported, StorageDamaged

KEY_PREFIX = b"consumer/"  # others may keep positions in the same space
VERSION = 1

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

# What one value may have, below the log's bound of 64 KiB, and what one open record takes of it at most.
STATE_BYTES_MAX = 62 * 1024
PENDING_BYTES_MAX = 48
PENDING_AND_TOPIC_BYTES_MAX = PENDING_BYTES_MAX + 18


def state_key(owner: str, name: str) -> bytes:
    """Keys of state stand in the clear on the disk: a digest, so that they name nobody. No two pairs of texts share one."""
    text = f"{len(name)}/{name}/{owner}".encode("utf-8", "surrogatepass")
    return KEY_PREFIX + blake2b(text, digest_size=32).digest()


class Pending(msgspec.Struct):
    """A record that was delivered and is not settled. `at_ms` is monotonic.

    `in_flight`: with the consumer, until `at_ms`; else it waits for its next delivery, which is due at `at_ms`. `leaving`: on
    its way to the dead-letter topic.
    """

    cursor: Cursor
    topic: str
    topic_id: bytes
    partition: int
    offset: int
    attempts: int
    in_flight: bool
    at_ms: int
    leaving: bool = False
    reason: str = ""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """The head of the value: all that listing needs. Fields are only ever added at its end."""

    version: int
    owner: str
    name: str
    address: str
    key_prefix: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    options: ConsumerOptions
    created_at_ms: int
    changed_at_ms: int
    next_sequence: Natural
    next_index: Natural
    since_ms: int | None
    pending: Natural

    @property
    def next(self) -> Cursor:
        return Cursor(self.next_sequence, self.next_index)

    @property
    def filter(self) -> Filter:
        return Filter(self.address, self.key_prefix, self.headers)


class Run(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`count` records of one batch; the cursor after the first is (sequence, index). `due_at_ms` is wall time, 0: at once."""

    topic: Natural
    partition: Natural
    offset: Natural
    sequence: Natural
    index: Natural
    count: Annotated[int, msgspec.Meta(ge=1, le=IN_FLIGHT_MAX)]
    attempts: Natural
    due_at_ms: Natural


class Value(msgspec.Struct, frozen=True, array_like=True):
    """`topics` holds the ids that runs name by number."""

    head: Kept
    topics: list[bytes]
    runs: list[Run]


class _HeadOnly(msgspec.Struct, frozen=True, array_like=True):
    head: Kept


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_encode = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(_HeadOnly)
_whole = msgspec.msgpack.Decoder(Value)


def encode(head: Kept, pending: Iterable[Pending], now_ms: int, clock_ms: int) -> bytes:
    """`now_ms` is the wall clock's, `clock_ms` the monotonic clock's time."""
    topics: dict[bytes, int] = {}
    runs: list[Run] = []
    first = following = (0, 0, 0, 0, 0, 0, 0)  # of the run under way
    count = 0
    for one in sorted(pending, key=_cursor_of):
        number = topics.setdefault(one.topic_id, len(topics))
        due_at_ms = 0 if one.in_flight or one.at_ms <= clock_ms else now_ms + one.at_ms - clock_ms
        sequence, index = one.cursor.sequence, one.cursor.index
        place = (number, one.partition, one.offset, sequence, index, one.attempts, due_at_ms)
        if count == 0 or place != following:
            if count:
                runs.append(_run(first, count))
            first, count = place, 0
        count += 1
        following = (number, one.partition, one.offset + 1, sequence, index + 1, one.attempts, due_at_ms)
    if count:
        runs.append(_run(first, count))
    return _encode(Value(head, list(topics), runs))


def _run(first: tuple[int, int, int, int, int, int, int], count: int) -> Run:
    topic, partition, offset, sequence, index, attempts, due_at_ms = first
    return Run(topic, partition, offset, sequence, index, count, attempts, due_at_ms)


def decode_head(value: bytes) -> Kept:
    """FormatUnsupported, StorageDamaged."""
    try:
        head = _head.decode(value).head
    except UNREADABLE as error:
        _refuse_newer(value)
        raise StorageDamaged("a consumer's state", str(error)) from None
    if head.version > VERSION:
        raise FormatUnsupported("a consumer's state", head.version, VERSION)
    return head


def decode(value: bytes, names: dict[bytes, str], now_ms: int, clock_ms: int, wait_ms_max: int) -> tuple[Kept, list[Pending]]:
    """What was in flight is due at once. `names` are the topics by id; records of topics that are gone are not there any more.

    A wall clock that jumped makes no wait longer than `wait_ms_max`.
    """
    head = decode_head(value)
    found: list[Pending] = []
    for topic_id, run in _runs(head, value):
        if (name := names.get(topic_id)) is None:
            continue
        at_ms = clock_ms + min(max(0, run.due_at_ms - now_ms), wait_ms_max)
        for step in range(run.count):
            cursor = Cursor(run.sequence, run.index + step)
            offset = run.offset + step
            found.append(Pending(cursor, name, topic_id, run.partition, offset, run.attempts, in_flight=False, at_ms=at_ms))
    return head, found


def _runs(head: Kept, value: bytes) -> list[tuple[bytes, Run]]:
    """Each with its topic's id, their records no more than may be pending."""
    try:
        whole = _whole.decode(value)
        if sum([run.count for run in whole.runs]) > IN_FLIGHT_MAX:
            raise StorageDamaged("a consumer's state", "it holds more records than any consumer may have pending")
        head.filter  # noqa: B018  a filter is checked where it is made
        return [(whole.topics[run.topic], run) for run in whole.runs]
    except (*UNREADABLE, LookupError, FilterInvalid) as error:
        raise StorageDamaged("a consumer's state", str(error)) from None


def room(head_bytes: int, in_flight_max: int, *, many_topics: bool) -> int:
    """How many records may be open for the state to fit its entry whatever they are."""
    each = PENDING_AND_TOPIC_BYTES_MAX if many_topics else PENDING_BYTES_MAX
    return max(1, min(in_flight_max, (STATE_BYTES_MAX - head_bytes) // each))


def head_bytes(head: Kept) -> int:
    return len(_encode(head)) + 32  # the arrays around it, and numbers that grow


def _cursor_of(one: Pending) -> Cursor:
    return one.cursor


def _refuse_newer(value: bytes) -> None:
    """A newer build may have changed more than its decoder allows: its version is told all the same."""
    try:
        version = msgspec.msgpack.decode(value)[0][0]
    except (*UNREADABLE, TypeError, LookupError):
        return
    if isinstance(version, int) and version > VERSION:
        raise FormatUnsupported("a consumer's state", version, VERSION)
