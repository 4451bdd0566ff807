"""Per-record time to live on every way out of the broker."""

from __future__ import annotations

import pytest

from broker.batch import build, walk
from broker.broker import Broker, BrokerOptions, Outgoing
from broker.delivery import expiry as module
from broker.delivery.expiry import expired, expires_at_ms, expiry_header, living, living_batch
from broker.delivery.filter import Filter
from broker.delivery.subscription import Subscription
from broker.engine.base import Stored
from broker.engine.embedded import EmbeddedEngine
from broker.errors import InvalidConfig
from broker.record import Record


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def now_ms(self) -> int:
        return self.now

    def monotonic_ms(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def broker(engine: EmbeddedEngine, clock: Clock) -> Broker:
    made = Broker(engine, clock, BrokerOptions())
    await made.create_topic("orders", 1)
    return made


async def put(broker: Broker, *records: Outgoing) -> None:
    await broker.publish("orders", records, durable=True, auto_create=False)


async def values(reader: Subscription) -> list[bytes | None]:
    return [one.record.value for one in await reader.next(bytes_max=1 << 20, records_max=100, wait_max_ms=0)]


MIXED = [
    Outgoing(b"a", b"stays"),
    Outgoing(b"a", b"short", ttl_ms=1_000),
    Outgoing(b"b", b"long", ttl_ms=5_000),
    Outgoing(b"b", b"moment", expires_at_ms=1_800_000_002_000),
    Outgoing(b"c", b"past", expires_at_ms=1),
]


@pytest.mark.parametrize(
    ("later_ms", "left"),
    [
        (0, [b"stays", b"short", b"long", b"moment"]),
        (999, [b"stays", b"short", b"long", b"moment"]),
        (1_000, [b"stays", b"long", b"moment"]),
        (2_000, [b"stays", b"long"]),
        (5_000, [b"stays"]),
    ],
)
async def test_no_reader_is_given_an_expired_record(broker: Broker, clock: Clock, later_ms: int, left: list[bytes]) -> None:
    await put(broker, *MIXED)
    clock.now += later_ms
    page = await broker.fetch("orders", 0, 0, records_max=100, bytes_max=1 << 20, wait_max_ms=0)
    assert [record.value for record in page.records] == left
    assert page.next_offset == 5  # past those that are left out: a reader does not meet them again
    assert await values(await broker.subscribe("orders", None, "earliest")) == left
    assert await values(await broker.subscribe_filter(Filter.parse("orders"), "earliest")) == left
    assert await values(await broker.subscribe_filter(Filter.parse("#"), "earliest")) == left
    assert await values(await broker.subscribe("orders", b"b", "earliest")) == [v for v in left if v in (b"long", b"moment")]


async def test_an_older_value_does_not_come_back_when_the_latest_expires(broker: Broker, clock: Clock) -> None:
    await put(broker, Outgoing(b"a", b"old"))
    await put(broker, Outgoing(b"a", b"new", ttl_ms=100))
    found = await broker.latest("orders", b"a")
    assert found is not None
    assert found[1].value == b"new"
    clock.now += 100
    assert await broker.latest("orders", b"a") is None
    await put(broker, Outgoing(b"a", b"newest"))
    found = await broker.latest("orders", b"a")
    assert found is not None
    assert found[1].value == b"newest"


async def test_age_is_asked_when_a_record_is_delivered_and_not_when_it_is_read(broker: Broker, clock: Clock) -> None:
    await put(broker, *[Outgoing(b"a", b"%d" % number, ttl_ms=100) for number in range(4)])
    reader = await broker.subscribe("orders", None, "earliest")
    assert len(await reader.next(bytes_max=1 << 20, records_max=2, wait_max_ms=0)) == 2
    clock.now += 100  # the batch is in the reader's hands already
    assert await values(reader) == []
    assert reader.at_end


async def test_readers_go_on_from_cursors_between_expired_records(broker: Broker, clock: Clock) -> None:
    await put(broker, Outgoing(b"a", b"0"), Outgoing(b"a", b"1", ttl_ms=1), Outgoing(b"a", b"2"), Outgoing(b"a", b"3", ttl_ms=1))
    clock.now += 1
    reader = await broker.subscribe("orders", None, "earliest")
    [first] = await reader.next(bytes_max=1 << 20, records_max=1, wait_max_ms=0)
    assert await values(await broker.subscribe("orders", None, first.cursor)) == [b"2"]


async def test_the_mark_is_kept_by_the_log(broker: Broker, engine: EmbeddedEngine) -> None:
    await put(broker, Outgoing(b"a", b"x", ttl_ms=50))
    await put(broker, Outgoing(b"a", b"y"))
    batches = (await engine.fetch("orders", 0, 0, bytes_max=1 << 20)).batches
    assert [batch.has_expiry for batch in batches] == [True, False]


def test_batches_without_the_mark_are_not_looked_into(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    batch = build([(1, b"k", b"v", [expiry_header(5)])])
    unmarked, marked = (Stored(0, 0, 1, 7, 1, batch, has_expiry=mark) for mark in (False, True))
    assert list(living(marked, clock)) == []
    monkeypatch.setattr(module, "expired", None)  # asking would fail
    assert len(list(living(unmarked, clock))) == 1


async def test_readers_of_whole_batches_meet_expired_records_unless_the_topic_is_strict(broker: Broker, clock: Clock) -> None:
    """Kafka clients open batches themselves: theirs are passed as they are, or cut with their offsets kept."""
    await put(broker, *MIXED)
    await put(broker, Outgoing(b"a", b"x", ttl_ms=1))
    await put(broker, Outgoing(b"a", b"y"))
    clock.now += 1_000

    async def read() -> list[list[tuple[int, bytes | None]]]:
        fetched = await broker.fetch_batches("orders", 0, 0, bytes_max=1 << 20, wait_max_ms=0)
        assert fetched.next_offset == 7
        return [[(record.offset, record.value) for record in walk(stored.batch)] for stored in fetched.batches]

    whole = await read()
    assert [len(batch) for batch in whole] == [5, 1, 1]
    await broker.alter_topic("orders", configs={"strict.ttl": "true"})
    assert await read() == [[(0, b"stays"), (2, b"long"), (3, b"moment")], [(6, b"y")]]
    await broker.alter_topic("orders", configs={"strict.ttl": None})
    assert await read() == whole


async def test_strict_is_true_or_false(broker: Broker) -> None:
    with pytest.raises(InvalidConfig, match="not one of false, true"):
        await broker.alter_topic("orders", configs={"strict.ttl": "yes"})


def test_a_batch_in_which_nothing_has_expired_is_the_same_object(clock: Clock) -> None:
    stored = Stored(0, 0, 1, 7, 1, build([(1, b"k", b"v", [expiry_header(clock.now + 1)])]), has_expiry=True)
    assert living_batch(stored, clock) is stored
    clock.now += 1
    assert living_batch(stored, clock) is None


@pytest.mark.parametrize("content", [None, b"", b"x", b"-5", b"1e3", b" 5", b"9" * 20, "\u0665".encode()])
def test_a_header_that_is_no_number_ends_nothing(content: bytes | None) -> None:
    record = Record(0, 0, None, b"v", (("sprawl-expires-at", content),))
    assert expires_at_ms(record) is None
    assert not expired(record, 2**62)
