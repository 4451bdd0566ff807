import errno
import random

import pytest

from broker.errors import FolderInUse
from broker.machine import MachineDisk
from tests.simulation.disk import SECTOR_BYTES, Media, SimulatedDisk
from tests.simulation.faults import Failure, Faults, Plan, PowerCut
from tests.simulation.trace import Trace


class Machine:
    """One disk and its lives."""

    def __init__(self, seed, **options):
        self.random = random.Random(seed)
        self.trace = Trace()
        self.media = Media(self.random, self.trace, **options)
        self.written = []
        self.start()

    def start(self, plan=None):
        self.faults = Faults(plan or Plan(), self.random, self.trace, lambda: None)
        self.disk = SimulatedDisk(self.media, self.faults, self.random, self.trace, lambda path, data: self.written.append(data))
        return self.disk

    def cut(self, plan=None):
        self.faults.kill()
        self.media.lose_power()
        return self.start(plan)


@pytest.fixture(params=["simulated", "machine"])
def disk(request, tmp_path):
    """What holds for both: the simulated disk is only worth something where it is like the real one."""
    return Machine(1).disk if request.param == "simulated" else MachineDisk(tmp_path / "data")


def make_durable(disk, path, data):
    file = disk.open(path, create=True)
    file.write_at(0, [data])
    file.sync()
    disk.sync_folder(path.rpartition("/")[0])
    return file


def content(disk, path):
    file = disk.open(path)
    return file.read_at(0, file.size())


@pytest.mark.parametrize("seed", range(20))
def test_what_was_synced_is_there_after_a_cut(seed):
    machine = Machine(seed)
    file = make_durable(machine.disk, "a", b"synced" * 500)
    file.write_at(5000, [b"more", b"and more"])
    assert content(machine.cut(), "a")[:3000] == b"synced" * 500


def test_the_living_process_reads_all_it_wrote():
    machine = Machine(1)
    file = machine.disk.open("a", create=True)
    file.write_at(0, [b"abc", bytearray(b"def"), memoryview(b"ghi")])
    file.write_at(12, [b"xyz"])
    assert file.read_at(0, 100) == b"abcdefghi\0\0\0xyz"
    assert file.read_at(3, 3) == b"def"
    assert file.size() == 15
    file.truncate(4)
    assert content(machine.disk, "a") == b"abcd"
    assert machine.written == [b"abcdefghi", b"xyz"]


def test_an_unsynced_write_is_lost_kept_or_torn_and_every_way_comes_up():
    outcomes = set()
    counts = Trace().counts
    for seed in range(200):
        machine = Machine(seed)
        file = make_durable(machine.disk, "a", b"")
        file.write_at(0, [b"\x01" * (4 * SECTOR_BYTES)])
        file.write_at(4 * SECTOR_BYTES, [b"\x02" * (4 * SECTOR_BYTES)])
        outcomes.add(content(machine.cut(), "a"))
        counts += machine.trace.counts
    whole = b"\x01" * 2048 + b"\x02" * 2048
    assert {b"", whole, whole[:2048]} <= outcomes
    assert bytes(2048) + whole[2048:] in outcomes, "the later write survived, the earlier one is a hole"
    assert whole[:2048] + bytes(2048) in outcomes, "the size survived, the data behind it did not"
    assert any(len(outcome) % SECTOR_BYTES for outcome in outcomes), "torn inside a sector at the end"
    assert counts.keys() >= {
        "unsynced write lost",
        "unsynced write kept",
        "unsynced write torn to a prefix",
        "unsynced write torn to sectors",
        "unsynced writes reordered",
        "unsynced file size lost",
        "unsynced file size ahead of the data",
    }


@pytest.mark.parametrize("seed", range(50))
def test_a_sector_holds_one_of_the_states_it_had(seed):
    machine = Machine(seed)
    file = make_durable(machine.disk, "a", b"0" * SECTOR_BYTES)
    file.write_at(0, [b"1" * 100])
    file.write_at(100, [b"2" * 412])
    states = {b"0" * 512, b"1" * 100 + b"0" * 412, b"1" * 100 + b"2" * 412}
    found = content(machine.cut(), "a")
    torn_prefix = any(found == new[:n] + old[n:] for new in states for old in states for n in range(513))
    assert found in states or torn_prefix


def test_an_unsynced_truncate_may_not_have_happened():
    sizes = set()
    for seed in range(50):
        machine = Machine(seed)
        make_durable(machine.disk, "a", b"x" * 1000).truncate(10)
        sizes.add(len(content(machine.cut(), "a")))
    assert sizes == {10, 1000}


def test_unsynced_names_survive_each_on_its_own_and_a_rename_as_a_whole():
    outcomes = set()
    for seed in range(200):
        machine = Machine(seed)
        make_durable(machine.disk, "old", b"old")
        make_durable(machine.disk, "gone", b"")
        fresh = machine.disk.open("new", create=True)
        fresh.write_at(0, [b"new"])
        fresh.sync()
        machine.disk.rename("new", "old")
        machine.disk.remove("gone")
        disk = machine.cut()
        outcomes.add((content(disk, "old"), disk.exists("new"), disk.exists("gone")))
    assert {name for name, _, _ in outcomes} == {b"old", b"new"}
    assert {(b"old", False, False), (b"old", True, True), (b"new", False, True), (b"new", False, False)} <= outcomes
    assert not any(data == b"new" and new for data, new, _ in outcomes), "one file under two names"


@pytest.mark.parametrize("seed", range(10))
def test_a_synced_folder_keeps_its_names(seed):
    machine = Machine(seed)
    machine.disk.make_folder("f")
    make_durable(machine.disk, "f/a", b"1")
    machine.disk.rename("f/a", "f/b")
    machine.disk.sync_folder("f")
    machine.disk.sync_folder("")
    disk = machine.cut()
    assert disk.list("f") == ["b"]
    assert disk.list("") == ["f"]


def test_a_folder_that_was_not_synced_takes_its_files_along():
    found = set()
    for seed in range(20):
        machine = Machine(seed)
        machine.disk.make_folder("f")
        make_durable(machine.disk, "f/a", b"1")
        found.add(machine.cut().exists("f/a"))
    assert found == {False, True}


def test_a_file_synced_without_its_name_can_be_gone():
    found = set()
    for seed in range(20):
        machine = Machine(seed)
        machine.disk.open("a", create=True).sync()
        found.add(machine.cut().exists("a"))
    assert found == {False, True}


def test_after_the_cut_every_call_raises():
    machine = Machine(3)
    file = make_durable(machine.disk, "a", b"1")
    dead = machine.disk
    machine.cut()
    for call in (
        lambda: file.write_at(0, [b"2"]),
        lambda: file.read_at(0, 1),
        lambda: file.size(),
        lambda: file.truncate(0),
        lambda: file.sync(),
        lambda: file.close(),
        lambda: dead.open("a"),
        lambda: dead.open("b", create=True),
        lambda: dead.list(""),
        lambda: dead.exists("a"),
        lambda: dead.make_folder("f"),
        lambda: dead.rename("a", "b"),
        lambda: dead.remove("a"),
        lambda: dead.sync_folder(""),
        lambda: dead.free_bytes(),
        lambda: dead.lock("LOCK", "me"),
    ):
        with pytest.raises(PowerCut):
            call()
    assert content(machine.disk, "a") == b"1"


@pytest.mark.parametrize("kind", ["write", "sync", "truncate", "create", "rename", "remove", "sync folder"])
def test_any_operation_can_be_the_last_and_is_done_or_not(kind):
    done = set()
    for seed in range(30):
        machine = Machine(seed)
        make_durable(machine.disk, "a", b"1" * 600)
        disk = machine.cut(Plan(cut_after=1, cut_kind=kind))
        with pytest.raises(PowerCut):
            run_all_kinds(disk)
        assert machine.faults.off
        assert machine.trace.counts[f"power cut at {kind}"] == 1
        disk = machine.cut()
        done.add((tuple(disk.list("")), content(disk, disk.list("")[0])[:600]) if disk.list("") else ())
    assert len(done) > 1


def run_all_kinds(disk):
    file = disk.open("a")
    file.write_at(0, [b"2" * 600])
    file.sync()
    file.truncate(0)
    disk.open("b", create=True)
    disk.rename("a", "c")
    disk.sync_folder("")
    disk.remove("b")


def test_a_failed_write_leaves_a_part_in_the_cache_and_raises():
    lengths = set()
    for seed in range(20):
        machine = Machine(seed)
        machine.start(Plan(failures=[Failure("write", 2, errno.ENOSPC)]))
        file = machine.disk.open("a", create=True)
        file.write_at(0, [b"1" * 100])
        with pytest.raises(OSError, match="No space") as raised:
            file.write_at(100, [b"2" * 100])
        assert raised.value.errno == errno.ENOSPC
        lengths.add(file.size())
        file.write_at(200, [b"3"])
        assert machine.trace.counts["write fails with ENOSPC"] == 1
    assert len(lengths) > 5
    assert all(100 <= length < 200 for length in lengths)


def test_a_full_disk_refuses_growth_and_still_takes_what_fits():
    machine = Machine(1, capacity_bytes=1000)
    file = machine.disk.open("a", create=True)
    file.write_at(0, [b"1" * 900])
    assert machine.disk.free_bytes() == 100
    with pytest.raises(OSError, match="No space"):
        file.write_at(900, [b"2" * 101])
    file.write_at(800, [b"3" * 100])
    assert file.size() == 900


def test_after_a_failed_sync_later_syncs_succeed_and_do_not_bring_the_data():
    lost = 0
    for seed in range(60):
        machine = Machine(seed)
        make_durable(machine.disk, "a", b"0" * 2048)
        disk = machine.cut(Plan(failures=[Failure("sync", 1, errno.EIO)]))
        file = disk.open("a")
        file.write_at(0, [b"1" * 1024])
        with pytest.raises(OSError, match="Input/output"):
            file.sync()
        file.write_at(1024, [b"2" * 1024])
        file.sync()
        found = content(machine.cut(), "a")
        assert found[1024:] == b"2" * 1024, "what was written after the failure is synced"
        lost += found[:1024] != b"1" * 1024
    assert 20 < lost < 60


def test_a_failed_folder_sync_promises_nothing():
    found = set()
    for seed in range(20):
        machine = Machine(seed)
        machine.start(Plan(failures=[Failure("sync folder", 1, errno.EIO)]))
        machine.disk.open("a", create=True).sync()
        with pytest.raises(OSError, match="Input/output"):
            machine.disk.sync_folder("")
        found.add(machine.cut().exists("a"))
    assert found == {False, True}


def test_flipped_bits_are_seen_at_once_and_after_a_cut():
    machine = Machine(7)
    make_durable(machine.disk, "a", bytes(1000))
    machine.media.flip("a", [3, 500, 999])
    live = content(machine.disk, "a")
    assert [at for at, byte in enumerate(live) if byte] == [3, 500, 999]
    assert sum(byte.bit_count() for byte in live) == 3
    assert content(machine.cut(), "a") == live


def test_a_killed_process_leaves_the_page_cache_to_the_next():
    machine = Machine(5)
    file = machine.disk.open("a", create=True)
    file.write_at(0, [b"unsynced"])
    machine.faults.kill()
    disk = machine.start()
    assert content(disk, "a") == b"unsynced"


def test_the_lock_names_its_holder_and_dies_with_the_process_or_its_release():
    machine = Machine(5)
    release = machine.disk.lock("LOCK", "node 1")
    with pytest.raises(FolderInUse, match="node 1"):
        machine.disk.lock("LOCK", "node 2")
    release()
    machine.disk.lock("LOCK", "node 2")
    machine.cut().lock("LOCK", "node 3")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda disk: disk.open("b"), FileNotFoundError),
        (lambda disk: disk.open("a", create=True), FileExistsError),
        (lambda disk: disk.open("f/a", create=True), FileNotFoundError),
        (lambda disk: disk.rename("b", "c"), FileNotFoundError),
        (lambda disk: disk.remove("b"), FileNotFoundError),
        (lambda disk: disk.sync_folder("f"), FileNotFoundError),
    ],
)
def test_mistakes_are_the_systems_errors(disk, call, error):
    make_durable(disk, "a", b"")
    with pytest.raises(error):
        call(disk)


def test_names_behave_as_on_a_machine(disk):
    disk.make_folder("f/g")
    disk.make_folder("f")
    make_durable(disk, "f/b", b"b")
    make_durable(disk, "f/a", b"a")
    assert disk.list("f") == ["a", "b", "g"]
    assert disk.list("nowhere") == []
    disk.rename("f/a", "f/b")
    assert disk.list("f") == ["b", "g"]
    assert content(disk, "f/b") == b"a"
    disk.remove("f/b")
    assert not disk.exists("f/b")
    assert disk.exists("f/g")


def test_content_behaves_as_on_a_machine(disk):
    file = disk.open("a", create=True)
    assert file.write_at(3, [b"ab", bytearray(b"cd"), memoryview(b"ef")]) == 6
    assert file.read_at(0, 100) == b"\0\0\0abcdef"
    assert file.read_at(4, 2) == b"bc"
    assert file.read_at(9, 5) == b""
    file.truncate(5)
    assert (file.size(), file.read_at(0, 9)) == (5, b"\0\0\0ab")
    file.truncate(7)
    assert file.read_at(3, 9) == b"ab\0\0"
    file.close()


def test_a_removed_file_stays_readable_through_its_handle():
    machine = Machine(1)
    file = make_durable(machine.disk, "a", b"1")
    machine.disk.remove("a")
    assert file.read_at(0, 1) == b"1"
    file.close()
    with pytest.raises(OSError, match="Bad file"):
        file.read_at(0, 1)


def test_two_runs_of_a_seed_leave_the_same_trace():
    digests = set()
    for _ in range(2):
        machine = Machine(11)
        file = make_durable(machine.disk, "a", b"1" * 5000)
        file.write_at(100, [b"2" * 3000])
        machine.cut().remove("a")
        machine.cut()
        digests.add(machine.trace.digest())
    assert len(digests) == 1
