import random
import struct

import pytest
from crc32c import crc32c

from broker.log.layout import (
    GROUP_MAGIC,
    JOURNAL_MAGIC,
    FileHeader,
    GroupHeader,
    pack_batch_header,
    pack_file_header,
    pack_group_header,
)
from tests.simulation.disk import Media, SimulatedDisk
from tests.simulation.faults import Faults, Plan
from tests.simulation.flips import Damager, Slot, doubtful_sequence, slots
from tests.simulation.store import SimulatedKeyedStores, StoresMedia
from tests.simulation.trace import Trace

SALT = 77


def journal(*groups):
    """A journal file of groups (number, durable through, first sequence), with bodies of 100 bytes."""
    header = FileHeader(JOURNAL_MAGIC, 1, 128, 1, bytes(16), 0, 0, bytes(60), SALT)
    packed = [
        pack_group_header(GroupHeader(GROUP_MAGIC, 100, number, through, sequence, 0, 0, 0, SALT)) + bytes([number]) * 100
        for number, through, sequence in groups
    ]
    return pack_file_header(header) + b"".join(packed)


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def batch(content, *, base_offset=5, sequence=9, key_id=1):
    head = pack_batch_header(
        0, 128 + len(content), 0, b"t" * 16, 3, key_id, bytes(12), 0, base_offset, sequence, 0, 0, 1, bytes(16)
    )
    return head + content


class Machine:
    def __init__(self, seed=1):
        self.random = random.Random(seed)
        self.trace = Trace()
        self.data, self.keys = Media(self.random, self.trace), Media(self.random, self.trace)
        self.stores = StoresMedia(self.random, self.trace)
        self.damager = Damager(self.random, self.trace, self.data, self.keys, self.stores)
        self.faults = Faults(Plan(), self.random, self.trace, lambda: None)

    def write(self, path, content, media=None):
        disk = SimulatedDisk(media or self.data, self.faults, self.random, self.trace, self.damager.wrote)
        if "/" in path:
            disk.make_folder(path.split("/")[0])
        file = disk.open(path, create=True)
        file.write_at(0, [content])
        file.sync()


GROUPS = ((1, 0, 10), (2, 1, 20), (3, 2, 30))
AT = {number: 128 + 164 * (number - 1) for number, _, _ in GROUPS}


@pytest.mark.parametrize(
    ("position", "doubtful"),
    [
        (AT[1] + 80, None),  # the body of a group that the last header confirms
        (AT[2] + 8, None),  # a header, likewise
        (AT[3] + 80, 30),  # the newest group: nothing confirms it
        (AT[3] + 8, 30),  # its header: now the one before is the newest that says anything, and it is whole
    ],
)
def test_only_flips_behind_the_newest_confirmation_are_doubtful(position, doubtful):
    data = journal(*GROUPS)
    assert doubtful_sequence({"j": data}, {"j": flipped(data, position)}) == doubtful


def test_two_flips_make_two_groups_doubtful():
    data = journal(*GROUPS)
    after = flipped(flipped(data, AT[3] + 8), AT[2] + 80)
    assert doubtful_sequence({"j": data}, {"j": after}) == 20


def test_a_later_journal_confirms_an_earlier_one():
    first, second = journal((1, 0, 10)), journal((2, 1, 20))
    assert doubtful_sequence({"a": first, "b": second}, {"a": flipped(first, AT[1] + 80), "b": second}) is None
    assert doubtful_sequence({"a": first}, {"a": flipped(first, AT[1] + 80)}) == 10


def test_flips_are_of_every_class_and_are_undone_by_the_operator():
    for seed in range(60):
        machine = Machine(seed)
        for path in ("journal/1.journal", "segments/2.segment", "state/3.snapshot", "manifest.a", "manifest.b"):
            machine.write(path, journal(*GROUPS))
        machine.write("keystore.a", bytes(100), machine.keys)
        machine.damager.flip()
        [flip] = machine.damager.flips
        assert flip.there
        assert 1 <= sum((a ^ b).bit_count() for a, b in zip(flip.before, flip.after, strict=True)) <= 3
        refused_rightly = machine.damager.refusal_is_right()
        assert refused_rightly == (flip.kind == "key store"), "the only copy of the key store, one copy of two manifests"
        machine.damager.restore()
        assert flip.there == (flip.kind == "journal")


def test_the_view_is_never_damaged_together_with_a_journal():
    for seed in range(60):
        machine = Machine(seed)
        machine.write("journal/1.journal", journal(*GROUPS))
        SimulatedKeyedStores(machine.stores, machine.faults, machine.trace, lambda puts: None).open("view")
        for _ in range(3):
            machine.damager.flip()
        assert machine.damager.view_damaged != any(flip.kind == "journal" for flip in machine.damager.flips)


def test_slots_are_found_between_other_bytes_and_not_in_damaged_headers():
    one, two = batch(b"x" * 20), batch(b"y" * 30, base_offset=6, sequence=10)
    data = b"SPB1 no header" + one + b"??" + two + batch(b"z" * 10)[:-1]
    assert [(at, slot.base_offset, slot.sealed_bytes) for at, slot in slots(data)] == [(14, 5, 148), (164, 6, 158)]
    assert slots(flipped(one, 60)) == []


def test_a_rolled_back_batch_is_put_back_once_and_only_before_a_successor():
    machine = Machine()
    lost, kept = batch(b"lost" * 5), batch(b"kept" * 5, key_id=2)
    machine.damager.wrote("journal/1.journal", lost)
    machine.write("segments/2.segment", bytes(50) + kept + bytes(50))
    assert not machine.damager.put_back(lambda slot: False)
    assert machine.damager.put_back(lambda slot: slot == Slot(b"t" * 16, 3, 5, 0, 9, 148))
    assert machine.data.content("segments/2.segment") == bytes(50) + lost + bytes(50)
    assert not machine.damager.put_back(lambda slot: True)


def test_a_flip_under_the_running_node_hits_sealed_files_only():
    machine = Machine()
    machine.write("journal/1.journal", journal(*GROUPS))
    machine.damager.flip_sealed()
    assert machine.trace.counts["flipped bit under the running node"] == 0
    head = b"SPFT" + struct.pack("<IQQQI8x", 1, 2, 0, 0, 0)
    machine.write("segments/2.segment", bytes(500) + head + struct.pack("<I", crc32c(head)))
    machine.damager.flip_sealed()
    assert machine.trace.counts["flipped bit under the running node"] == 1
