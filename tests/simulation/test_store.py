import random

import pytest

from broker.errors import StorageDamaged
from tests.simulation.faults import Faults, Plan, PowerCut
from tests.simulation.store import LOG_WRITES_MAX, SimulatedKeyedStores, StoresMedia
from tests.simulation.trace import Trace


class Machine:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.trace = Trace()
        self.media = StoresMedia(self.random, self.trace)
        self.start()

    def start(self, plan=None):
        self.faults = Faults(plan or Plan(), self.random, self.trace, lambda: None)
        self.stores = SimulatedKeyedStores(self.media, self.faults, self.trace, lambda puts: None)
        return self.stores

    def cut(self, **ways):
        self.faults.kill()
        self.media.lose_power(**ways)
        return self.start()


def items(store, prefix=b""):
    return list(store.items(prefix))


def test_reads_see_writes_in_key_order():
    store = Machine(1).stores.open("view")
    store.write([(b"b", b"2"), (b"a1", b"1"), (b"a2", b"x")])
    store.write([(b"a2", b"3")], [b"b"])
    assert items(store) == [(b"a1", b"1"), (b"a2", b"3")]
    assert items(store, b"a2") == [(b"a2", b"3")]
    assert store.get(b"a1") == b"1"
    assert store.get(b"b") is None


def test_a_cut_keeps_what_was_flushed_and_a_prefix_of_the_rest():
    survived = set()
    for seed in range(60):
        machine = Machine(seed)
        store = machine.stores.open("view")
        for number in range(3):
            store.write([(b"%d" % number, b"")])
        store.flush()
        for number in range(3, 6):
            store.write([(b"%d" % number, b"")])
        try:
            keys = [key for key, _ in items(machine.cut().open("view"))]
        except StorageDamaged:
            assert machine.media.torn
            survived.add("torn")
            continue
        assert keys == [b"%d" % number for number in range(len(keys))]
        survived.add(len(keys))
    assert survived == {3, 4, 5, 6, "torn"}


def test_a_cut_tears_nothing_where_it_may_not_and_never_a_store_that_is_flushed():
    for seed in range(60):
        machine = Machine(seed)
        store = machine.stores.open("view")
        store.write([(b"1", b"")])
        store.flush()
        assert items(machine.cut().open("view"))
        machine.stores.open("view").write([(b"2", b"")])
        assert items(machine.cut(may_tear=False).open("view"))


def test_many_writes_are_folded_and_nothing_flushed_is_lost():
    machine = Machine(2)
    store = machine.stores.open("view")
    for number in range(LOG_WRITES_MAX + 1):
        store.write([(b"%04d" % number, b"v")], [b"%04d" % (number - 1)] if number % 2 else [])
    store.flush()
    before = items(store)
    assert machine.media.folders["view"].log == []
    assert items(machine.cut().open("view")) == before


def test_a_destroyed_store_may_come_back_until_the_new_one_is_flushed():
    seen = set()
    for seed in range(30):
        machine = Machine(seed)
        store = machine.stores.open("view")
        store.write([(b"old", b"")])
        store.flush()
        store.close()
        machine.stores.destroy("view")
        assert items(machine.stores.open("view")) == []
        seen.add(bool(items(machine.cut().open("view"))))
    assert seen == {False, True}
    machine.stores.destroy("view")
    machine.stores.open("view").flush()
    assert items(machine.cut().open("view")) == []


def test_flipped_bits_refuse_to_open_or_drop_the_tail():
    seen = set()
    for seed in range(30):
        machine = Machine(seed)
        store = machine.stores.open("view")
        for number in range(5):
            store.write([(b"%d" % number, b"")])
        store.flush()
        machine.faults.kill()
        machine.media.flip("view")
        try:
            count = len(items(machine.start().open("view")))
            assert count < 5
            seen.add("dropped")
        except StorageDamaged:
            machine.stores.destroy("view")
            assert items(machine.stores.open("view")) == []
            seen.add("refused")
    assert seen == {"dropped", "refused"}


@pytest.mark.parametrize("kind", ["store write", "store flush"])
def test_the_power_can_fail_on_either_side_of_write_and_flush(kind):
    kept = set()
    for seed in range(40):
        machine = Machine(seed)
        machine.start(Plan(cut_after=1, cut_kind=kind))
        store = machine.stores.open("view")
        with pytest.raises(PowerCut):
            run_both(store)
        with pytest.raises(PowerCut):
            store.get(b"1")
        kept.add(len(items(machine.cut(may_tear=False).open("view"))))
    assert kept == {0, 1}


def run_both(store):
    store.write([(b"1", b"")])
    store.flush()


def test_a_closed_store_refuses():
    store = Machine(1).stores.open("view")
    store.close()
    with pytest.raises(OSError, match="closed"):
        store.get(b"")
