import pytest

from broker.engine.base import StateChange, StateSpace
from tests.simulation.ledger import Broken
from tests.simulation.published import Batch, Call
from tests.simulation.states import StateLedger

KEY = (StateSpace.POSITION, b"worker")


class Node:
    """A started node as the judge asks it."""

    def __init__(self, **values):
        self.values = {(StateSpace.POSITION, key.encode()): value for key, value in values.items()}

    def state(self, space, key):
        return self.values.get((space, key))

    def states(self, space):
        return ((key, value) for (s, key), value in self.values.items() if s is space)


@pytest.fixture
def states():
    def broken(what):
        raise Broken(what)

    return StateLedger(broken)


def change(states, outcome, key=b"worker", value=b"1"):
    call = Call()
    states.changing(call, [StateChange(StateSpace.POSITION, key, value)])
    call.outcome = outcome
    return call


def test_what_was_acknowledged_is_there(states):
    change(states, "acknowledged", value=b"1")
    change(states, "acknowledged", value=b"2")
    assert states.settle(Node(worker=b"2"), damage_told=False) == 0


@pytest.mark.parametrize("found", [{}, {"worker": b"1"}, {"worker": b"3"}, {"worker": b"2", "other": b"x"}])
def test_anything_else_is_a_broken_promise(states, found):
    change(states, "acknowledged", value=b"1")
    change(states, "acknowledged", value=b"2")
    change(states, "absent", value=b"3")
    with pytest.raises(Broken):
        states.settle(Node(**found), damage_told=False)


@pytest.mark.parametrize("found", [{"worker": b"1"}, {"worker": b"2"}, {"worker": b"3"}, {}])
def test_an_open_outcome_may_be_either_and_is_decided_by_what_is_found(states, found):
    change(states, "acknowledged", value=b"1")
    change(states, "unknown", value=b"2")
    change(states, "in flight", value=b"3")
    change(states, "unknown", value=None)
    assert states.settle(Node(**found), damage_told=False) == 0
    assert states.settle(Node(**found), damage_told=False) == 0
    for other in (b"1", b"2", b"3"):
        if other != found.get("worker"):
            with pytest.raises(Broken):
                states.settle(Node(worker=other), damage_told=False)


def test_one_entry_of_an_append_proves_the_others(states):
    call = Call()
    states.changing(call, [StateChange(StateSpace.POSITION, key, b"1") for key in (b"a", b"b")])
    call.outcome = "unknown"
    with pytest.raises(Broken, match="b'b' is nothing"):
        states.settle(Node(a=b"1"), damage_told=False)


@pytest.mark.parametrize(("outcome", "found"), [("acknowledged", {}), ("absent", {"worker": b"1"})])
def test_batches_that_are_there_prove_the_state_and_the_reverse(states, outcome, found):
    call = change(states, outcome)
    call.batches.append(Batch(call, "orders", b"t", 0, b"f", (None,), (0,), 100))
    with pytest.raises(Broken):
        states.settle(Node(**found), damage_told=False)


def test_damage_that_is_told_excuses_an_older_value_and_no_invented_one(states):
    change(states, "acknowledged", value=b"1")
    change(states, "acknowledged", value=b"2")
    with pytest.raises(Broken):
        states.settle(Node(worker=b"invented"), damage_told=True)
    assert states.settle(Node(worker=b"1"), damage_told=True) == 1
    assert states.settle(Node(worker=b"1"), damage_told=False) == 0


def test_a_power_cut_opens_what_was_only_state(states):
    change(states, "acknowledged", value=b"1")
    states.settle(Node(worker=b"1"), damage_told=False)
    change(states, "acknowledged", value=b"2")
    states.reopen()
    states.settle(Node(worker=b"1"), damage_told=False)
    change(states, "acknowledged", value=b"3")
    states.reopen()
    with pytest.raises(Broken):
        states.settle(Node(worker=b"2"), damage_told=False)


def test_live_readers_never_see_what_was_overwritten(states):
    change(states, "acknowledged", value=b"1")
    change(states, "acknowledged", value=b"2")
    states.saw(*KEY, b"2")
    with pytest.raises(Broken):
        states.saw(*KEY, b"1")
