"""Keyed state beside data: its bounds count what is in flight, and give back what never became visible."""

from __future__ import annotations

import pytest

from broker.engine.base import StateChange, StateSpace
from broker.errors import RecordTooLarge, StateFull
from broker.log.journal import PendingFrame
from broker.log.options import LogOptions
from broker.log.state import Entry, Kind, StateTable
from broker.log.state_space import StateSpaces

SPACE = StateSpace.IDEMPOTENCY
OPTIONS = LogOptions(state_entries_max=3, state_bytes_max=30, state_key_bytes_max=8, state_value_bytes_max=16)


class World:
    def __init__(self, options: LogOptions = OPTIONS) -> None:
        self.table = StateTable()
        self.spaces = StateSpaces(options, self.table)

    def admit(self, space: StateSpace = SPACE, /, **values: bytes | None) -> PendingFrame:
        frame = PendingFrame(1, None)
        self.spaces.admit(frame, [StateChange(space, key.encode(), value) for key, value in values.items()])
        return frame

    def commit(self, frame: PendingFrame) -> None:
        self.table.apply(frame.entries)
        self.spaces.settle(frame)


@pytest.fixture
def world() -> World:
    return World()


def test_entries_up_to_the_bound(world: World) -> None:
    world.commit(world.admit(a=b"", b=b"", c=b""))
    with pytest.raises(StateFull) as refused:
        world.admit(d=b"")
    assert (refused.value.limit_name, refused.value.limit) == ("state_entries_max", 3)


def test_what_is_in_flight_counts(world: World) -> None:
    world.admit(a=b"", b=b"")
    with pytest.raises(StateFull):
        world.admit(c=b"", d=b"")
    world.admit(c=b"")


def test_what_was_rolled_back_counts_no_more(world: World) -> None:
    world.admit(a=b"", b=b"", c=b"")
    world.spaces.roll_back()
    world.commit(world.admit(d=b"", e=b"", f=b""))
    assert world.table.space_entries == 3


def test_deletes_and_values_no_larger_pass_at_the_bound(world: World) -> None:
    world.commit(world.admit(a=b"123", b=b"", c=b""))
    world.commit(world.admit(a=b"321"))
    world.commit(world.admit(a=b"", b=None, unknown=None))
    world.commit(world.admit(d=b""))
    assert dict(world.spaces.items(SPACE)) == {b"a": b"", b"c": b"", b"d": b""}


def test_bytes_up_to_the_bound(world: World) -> None:
    world.commit(world.admit(a=bytes(14), b=bytes(13)))
    with pytest.raises(StateFull) as refused:
        world.admit(b=bytes(15))
    assert (refused.value.limit_name, refused.value.limit) == ("state_bytes_max", 30)
    world.commit(world.admit(b=bytes(14)))
    assert world.table.space_bytes == 30


def test_no_space_takes_the_place_of_others() -> None:
    world = World(LogOptions(state_bytes_max=30, state_space_bytes_max=20))
    world.commit(world.admit(a=bytes(19)))
    with pytest.raises(StateFull) as refused:
        world.admit(b=b"")
    assert (refused.value.limit_name, refused.value.limit) == ("state_space_bytes_max", 20)
    world.commit(world.admit(StateSpace.POSITION, a=bytes(9)))
    world.commit(world.admit(a=None))
    world.commit(world.admit(b=bytes(19)))
    with pytest.raises(StateFull) as refused:
        world.admit(StateSpace.POSITION, b=b"")
    assert refused.value.limit_name == "state_bytes_max"


def test_one_entry_has_bounds_of_its_own(world: World) -> None:
    with pytest.raises(RecordTooLarge):
        world.admit(k23456789=b"")
    with pytest.raises(RecordTooLarge):
        world.admit(a=bytes(17))
    frame = world.admit(k2345678=bytes(16))
    assert frame.size > 24


def test_the_nodes_own_entries_are_not_counted(world: World) -> None:
    world.table.apply([Entry(Kind.TOPIC, b"t", bytes(1000))])
    assert (world.table.space_entries, world.table.space_bytes) == (0, 0)
    assert len(world.table) == 1


def test_the_table_counts_both_ways(world: World) -> None:
    world.commit(world.admit(a=b"12", b=b"34"))
    world.commit(world.admit(a=None, b=b"5"))
    assert (world.table.space_entries, world.table.space_bytes) == (1, 2)
    world.commit(world.admit(b=None))
    assert (world.table.space_entries, world.table.space_bytes) == (0, 0)
