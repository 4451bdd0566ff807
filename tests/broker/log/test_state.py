"""Keyed state: its view over a real RocksDB, its table, its snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import msgspec
import pytest

from broker.errors import FormatUnsupported, StorageDamaged
from broker.log.manifest import seal_small_file
from broker.log.sealing import SNAPSHOT_PURPOSE, LogKeys
from broker.log.state import (
    Entry,
    Kind,
    Snapshot,
    StateTable,
    StateView,
    decode_entries,
    encode_entries,
    encode_snapshot,
    log_start_key,
    open_snapshot,
    parse_wrapped_key,
    seal_snapshot,
    wrapped_key_entry,
)
from broker.machine import MachineDisk, MachineStores, RocksStore
from security.crypto.keystore import SYSTEM_TOPIC_ID
from security.errors import TamperedData
from tests.broker.log.journals import ORDERS, MemoryBlob, make_keys, make_keystore

TOPIC = Entry(Kind.TOPIC, ORDERS, b"a topic named orders")
START = Entry(Kind.LOG_START, log_start_key(ORDERS, 3), b"\x01\x05")


@pytest.fixture
def rocks(disk: MachineDisk) -> Iterator[RocksStore]:
    store = MachineStores(disk.root).open("view")
    yield store
    store.close()


def own_key(keys: LogKeys) -> Entry:
    epoch = keys.system_epoch()
    return wrapped_key_entry(SYSTEM_TOPIC_ID, epoch.key_id, epoch.wrapped)


def test_entries_round_trip_and_nil_deletes() -> None:
    entries = [TOPIC, Entry(Kind.SHREDDING, ORDERS, None)]
    assert decode_entries(encode_entries(entries)) == entries


def test_a_wrapped_key_names_its_topic_and_id() -> None:
    assert parse_wrapped_key(wrapped_key_entry(ORDERS, 77, b"w" * 60)) == (ORDERS, 77, b"w" * 60)


def test_an_empty_view_reflects_nothing(rocks: RocksStore, keys: LogKeys) -> None:
    assert StateView(rocks, keys).load() == (0, [])


def test_a_view_is_read_by_a_later_process_with_the_key_store_alone(rocks: RocksStore) -> None:
    keystore = make_keystore(MemoryBlob())
    first = make_keys(keystore, "first")
    view = StateView(rocks, first)
    view.write(view.stage(4, [own_key(first), TOPIC, START]))
    group, entries = StateView(rocks, make_keys(keystore, "second")).load()
    assert group == 4
    assert sorted(entries, key=lambda entry: entry.kind) == [TOPIC, own_key(first), START]


def test_values_do_not_show_in_the_store(rocks: RocksStore, keys: LogKeys) -> None:
    view = StateView(rocks, keys)
    view.write(view.stage(4, [TOPIC]))
    assert all(b"orders" not in value for _, value in rocks.items(b"\x01"))


def test_the_newest_entry_of_a_key_wins_within_a_group(rocks: RocksStore, keys: LogKeys) -> None:
    view = StateView(rocks, keys)
    gone = Entry(Kind.TOPIC, ORDERS, None)
    view.write(view.stage(1, [own_key(keys), gone, TOPIC]))
    assert TOPIC in view.load()[1]
    view.write(view.stage(2, [TOPIC, gone]))
    assert view.load() == (2, [own_key(keys)])


def test_a_group_without_entries_moves_the_position(rocks: RocksStore, keys: LogKeys) -> None:
    view = StateView(rocks, keys)
    view.write(view.stage(1, [own_key(keys)]))
    view.write(view.stage(9, []))
    assert view.load()[0] == 9


def test_a_value_that_is_changed_moved_or_of_an_unknown_key_is_damage(rocks: RocksStore, keys: LogKeys) -> None:
    view = StateView(rocks, keys)
    view.write(view.stage(1, [own_key(keys), TOPIC, START]))
    rows = dict(rocks.items(b""))
    topic, start = b"\x01" + ORDERS, b"\x03" + START.key
    for wrong in (rows[topic][:-1] + bytes([rows[topic][-1] ^ 1]), rows[start], b"", b"\xff" * 40):
        rocks.write([(topic, wrong)])
        with pytest.raises(StorageDamaged, match="an entry does not open"):
            view.load()
    rocks.write([(topic, rows[topic])], [b"\x02" + own_key(keys).key])
    with pytest.raises(StorageDamaged, match="an entry does not open"):
        StateView(rocks, make_keys(life="later")).load()


def test_a_wrapped_key_cut_short_is_refused(rocks: RocksStore, keys: LogKeys) -> None:
    rocks.write([(b"\x02" + own_key(keys).key, b"short")])
    with pytest.raises(TamperedData):
        StateView(rocks, keys).load()


def test_the_table_keeps_the_newest_of_each_key() -> None:
    table = StateTable()
    table.apply([TOPIC, START, Entry(Kind.TOPIC, ORDERS, b"newer"), Entry(Kind.LOG_START, b"none", None)])
    assert table.get(Kind.TOPIC, ORDERS) == b"newer"
    assert table.entries(Kind.LOG_START) == [START]
    assert len(table) == 2
    table.apply([Entry(Kind.TOPIC, ORDERS, None)])
    assert table.entries() == [START]


def test_the_table_gives_its_keys_to_a_keyring() -> None:
    keystore = make_keystore(MemoryBlob())
    first, second = make_keys(keystore, "first"), make_keys(keystore, "second")
    table = StateTable()
    table.apply([own_key(first)])
    sealed = first.seal_value(b"k", b"v")
    table.adopt_keys(second)
    assert second.open_value(b"k", sealed) == b"v"


def test_a_snapshot_is_read_as_sealed_and_hides_its_entries(keys: LogKeys) -> None:
    data = seal_snapshot(keys, 12, [TOPIC, START])
    assert b"orders" not in data
    assert open_snapshot(keys, "state/1.snapshot", data) == Snapshot(1, 12, [TOPIC, START])


def test_any_changed_byte_or_prefix_of_a_snapshot_is_damage(keys: LogKeys, flipped: Callable[..., bytes]) -> None:
    data = seal_snapshot(keys, 12, [TOPIC])
    for at in range(len(data)):
        for wrong in (flipped(data, at), data[:at]):
            with pytest.raises(TamperedData):
                open_snapshot(keys, "state/1.snapshot", wrong)


def test_a_newer_snapshot_is_refused_by_name(keys: LogKeys) -> None:
    data = seal_small_file(keys, b"SPZ1", SNAPSHOT_PURPOSE, 12, b"\x92\x02\xa3new")
    with pytest.raises(FormatUnsupported, match=r"state/1\.snapshot has format version 2"):
        open_snapshot(keys, "state/1.snapshot", data)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 999, 1_000, 1_001, 1_016, 65_535, 65_536])
def test_a_snapshot_made_in_pieces_is_the_same(count: int) -> None:
    entries = [Entry(Kind.LOG_START, b"%d" % number, b"v") for number in range(count)]
    assert encode_snapshot(1 << 40, entries) == msgspec.msgpack.encode(Snapshot(1, 1 << 40, entries))


async def test_entries_are_collected_while_they_change() -> None:
    """Replaying what changed meanwhile gives the same, whatever of it was met."""
    table, replayed = StateTable(), StateTable()
    table.apply([Entry(10, b"%d" % number, b"old") for number in range(5_000)])
    changes = [Entry(10, b"%d" % number, None if number % 3 else b"new") for number in range(0, 6_000, 7)]
    collecting = asyncio.ensure_future(table.collect())
    for change in changes:
        await asyncio.sleep(0)
        table.apply([change])
    replayed.apply(await collecting)
    replayed.apply(changes)
    assert sorted(replayed.items(10)) == sorted(table.items(10))
