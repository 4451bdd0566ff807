"""The group of the consumer protocol (KIP-848), driven by hand and by a crowd of made-up members."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.engine.base import Topic
from broker.groups.assignors import Places
from broker.groups.consumer import ConsumerGroup, ConsumerState
from broker.groups.consumer_member import JOIN, LEAVE, LEAVE_FOR_A_WHILE, Beat, Beaten, MemberState
from broker.groups.group_errors import (
    AssignorUnsupported,
    GroupFull,
    GroupProblem,
    InstanceFenced,
    InstanceUnreleased,
    MemberEpochFenced,
    MemberEpochStale,
    MemberUnknown,
    SubscriptionInvalid,
)
from broker.groups.group_options import GroupOptions

SESSION_MS, REBALANCE_MS = 45_000, 60_000
NOTHING: Places = frozenset()


def topic(name: str, partitions: int) -> Topic:
    return Topic(name.encode().rjust(16, b"\0"), name, partitions, {}, 0)


class Client:
    """A member as KIP-848 wants it: it gives up at once what it was told to, unless it is `slow`; after a lost answer it says
    everything anew."""

    def __init__(self, room: Room, member_id: str, **said: Any) -> None:
        self.room, self.id, self.said = room, member_id, said
        self.epoch, self.slow, self.lost = JOIN, False, False
        self.told: Places = NOTHING
        self.owned: Places = NOTHING

    def beat(self) -> Beaten:
        said: dict[str, Any] = {}
        if self.epoch == JOIN or self.lost:
            said = {"topics": ("t",), "rebalance_timeout_ms": REBALANCE_MS, **self.said}
        if self.epoch == JOIN:
            self.told = self.owned = NOTHING
        beaten = self.room.beat(Beat(self.id, self.epoch, owned=self.owned, **said))
        self.epoch, self.lost = beaten.epoch, False
        if beaten.assigned is not None:
            self.told = beaten.assigned
        self.take()
        return beaten

    def take(self) -> None:
        self.owned = self.owned | self.told if self.slow else self.told


class Room:
    def __init__(self, partitions: int = 6, **options: Any) -> None:
        self.group = ConsumerGroup("readers", GroupOptions(consumer_refresh_ms=0, **options))
        self.topics = {"t": topic("t", partitions)}
        self.now_ms = 0
        self.clients: dict[str, Client] = {}

    def beat(self, beat: Beat) -> Beaten:
        return self.group.beat(beat, self.topics, lambda name: not name.startswith("secret"), self.now_ms)

    def enter(self, member_id: str, **said: Any) -> Client:
        client = self.clients[member_id] = Client(self, member_id, **said)
        client.beat()
        return client

    def settle(self) -> None:
        for _ in range(10):
            for client in self.clients.values():
                client.beat()
        assert self.group.state is ConsumerState.STABLE

    def sizes(self) -> list[int]:
        return sorted(len(client.owned) for client in self.clients.values())


@pytest.fixture
def room() -> Room:
    return Room()


class TestReconciliation:
    def test_the_first_has_everything(self, room: Room) -> None:
        first = room.enter("a")
        assert (first.epoch, len(first.owned)) == (2, 6), "the first epoch is that of the empty group, as in Kafka"
        assert room.group.state is ConsumerState.STABLE
        assert room.group.dirty
        assert room.group.changed == {"a"}
        assert first.beat() == Beaten("a", 2), "nothing new is told"

    def test_a_second_gets_its_part_when_the_first_has_given_it_up(self, room: Room) -> None:
        first = room.enter("a")
        first.slow = True
        second = room.enter("b")
        assert (second.epoch, second.owned) == (3, NOTHING)
        assert room.group.members["b"].state is MemberState.UNRELEASED
        told = first.beat()
        assert (told.epoch, len(told.assigned or ())) == (2, 3), "its epoch stays until it has given up the rest"
        assert second.beat().assigned is None
        first.slow = False
        first.take()
        assert first.beat() == Beaten("a", 3), "what it has it was told before"
        assert len(second.beat().assigned or ()) == 3
        assert room.group.state is ConsumerState.STABLE

    def test_who_wants_nothing_makes_no_epoch(self, room: Room) -> None:
        first = room.enter("a", topics=())
        assert (first.epoch, first.owned, room.group.epoch) == (1, NOTHING, 1)
        assert room.group.state is ConsumerState.STABLE
        room.beat(Beat("a", 1, topics=("none",)))
        assert (room.group.epoch, room.group.assignment_epoch) == (2, 2), "it wants something, although there is none"
        room.beat(Beat("a", 2, assignor="range"))
        assert (room.group.epoch, room.group.assignor) == (2, "range"), "which counts for the next target"

    def test_each_that_goes_makes_an_epoch(self, room: Room) -> None:
        for name in ("a", "b", "c"):
            room.enter(name)
        room.settle()
        before = room.group.epoch
        room.beat(Beat("a", LEAVE))
        room.beat(Beat("b", LEAVE))
        assert (room.group.epoch, room.group.assignment_epoch) == (before + 2, before)
        assert room.group.state is ConsumerState.ASSIGNING

    def test_one_that_leaves_gives_its_part_to_the_others(self, room: Room) -> None:
        room.enter("a")
        room.enter("b")
        room.settle()
        assert room.sizes() == [3, 3]
        assert room.beat(Beat("a", LEAVE)) == Beaten("a", LEAVE)
        del room.clients["a"]
        room.settle()
        assert room.sizes() == [6]

    def test_topics_that_come_grow_and_go(self, room: Room) -> None:
        client = room.enter("a", topics=("t", "u"))
        assert len(client.owned) == 6
        room.topics["u"] = topic("u", 2)
        room.settle()
        assert len(client.owned) == 8
        room.topics["t"] = topic("t", 7)
        room.settle()
        assert len(client.owned) == 9
        del room.topics["t"]
        room.settle()
        assert len(client.owned) == 2

    def test_a_pattern(self, room: Room) -> None:
        client = room.enter("a", topics=None, pattern="t.*|secret.*")
        assert len(client.owned) == 6
        room.topics["tea"] = topic("tea", 1)
        room.topics["secret"] = topic("secret", 5)
        room.topics["other"] = topic("other", 5)
        room.settle()
        assert len(client.owned) == 7
        with pytest.raises(SubscriptionInvalid):
            room.enter("b", pattern="(")
        with pytest.raises(SubscriptionInvalid):
            room.enter("b", pattern="x" * 1_025)
        assert list(room.group.members) == ["a"]

    def test_the_assignor_that_most_ask_for(self, room: Room) -> None:
        room.enter("a", assignor="range")
        room.enter("b")
        room.settle()
        assert room.group.assignor == "range"
        assert sorted(partition for _, partition in room.clients["a"].owned) == [0, 1, 2]
        with pytest.raises(AssignorUnsupported, match="uniform, range"):
            room.enter("c", assignor="mine")

    def test_another_subscription(self, room: Room) -> None:
        room.topics["u"] = topic("u", 2)
        client = room.enter("a")
        beaten = room.beat(Beat("a", client.epoch, topics=("u",), owned=client.owned))
        assert beaten.assigned == NOTHING
        client.told = NOTHING
        client.take()
        room.settle()
        assert len(client.owned) == 2


class TestFencing:
    def test_epochs_that_were_not_given(self, room: Room) -> None:
        room.enter("a")
        for epoch in (3, 7):
            with pytest.raises(MemberEpochFenced):
                room.beat(Beat("a", epoch))
        with pytest.raises(MemberUnknown):
            room.beat(Beat("b", 1))

    def test_an_answer_that_was_lost(self, room: Room) -> None:
        first = room.enter("a")
        room.enter("b")
        first.beat()
        room.beat(Beat("a", 2, owned=first.owned))  # epoch 3 is in the answer, which is lost
        again = room.beat(Beat("a", 2, owned=first.owned))
        assert (again.epoch, again.assigned) == (3, first.owned)
        with pytest.raises(MemberEpochFenced):
            room.beat(Beat("a", 2, owned=frozenset([(b"x" * 16, 0)])))
        with pytest.raises(MemberEpochFenced):
            room.beat(Beat("a", 2))

    def test_a_silent_member(self, room: Room) -> None:
        room.enter("a")
        room.now_ms += SESSION_MS - 1
        other = room.enter("b")
        room.now_ms += 1
        room.group.tick(room.now_ms)
        assert list(room.group.members) == ["b"]
        other.beat()
        assert len(other.owned) == 6
        with pytest.raises(MemberUnknown):
            room.clients["a"].beat()

    def test_one_that_gives_nothing_up(self, room: Room) -> None:
        first = room.enter("a")
        first.slow = True
        second = room.enter("b")
        first.beat()
        for _ in range(REBALANCE_MS // 10_000):
            assert "a" in room.group.members
            first.beat()
            second.beat()
            room.now_ms += 10_000
            room.group.tick(room.now_ms)
        with pytest.raises(MemberUnknown):
            first.beat()
        second.beat()
        assert len(second.owned) == 6

    def test_whoever_was_fenced_begins_again(self, room: Room) -> None:
        client = room.enter("a")
        client.epoch = JOIN
        assert len(client.beat().assigned or ()) == 6


class TestStaticMembers:
    def test_it_has_what_it_had_when_it_comes_back(self, room: Room) -> None:
        room.enter("a", instance_id="x")
        room.enter("b")
        room.settle()
        had, epoch = room.clients["a"].owned, room.group.epoch
        assert room.beat(Beat("a", LEAVE_FOR_A_WHILE, instance_id="x")) == Beaten("a", LEAVE_FOR_A_WHILE)
        del room.clients["a"]
        room.clients["b"].beat()
        assert room.group.state is ConsumerState.RECONCILING
        back = room.enter("c", instance_id="x")
        assert (back.owned, room.group.epoch) == (had, epoch)
        with pytest.raises(InstanceFenced):
            room.beat(Beat("a", 1, instance_id="x"))
        assert room.group.changed >= {"a", "c"}, "the old entry goes with the new one"

    def test_ranges_stay_where_the_instance_is(self, room: Room) -> None:
        room.enter("m", assignor="range")
        room.enter("z", instance_id="x", assignor="range")
        room.settle()
        assert {partition for _, partition in room.clients["z"].owned} == {0, 1, 2}, "static members come first"
        room.beat(Beat("z", LEAVE_FOR_A_WHILE, instance_id="x"))
        del room.clients["z"]
        room.enter("y", instance_id="x")
        room.topics["t"] = topic("t", 8)
        room.settle()
        assert {partition for _, partition in room.clients["y"].owned} == {0, 1, 2, 3}

    def test_it_is_refused_while_the_other_is_there(self, room: Room) -> None:
        room.enter("a", instance_id="x")
        with pytest.raises(InstanceUnreleased):
            room.enter("c", instance_id="x")

    def test_it_does_not_come_back(self, room: Room) -> None:
        room.enter("a", instance_id="x")
        room.enter("b")
        room.settle()
        room.beat(Beat("a", LEAVE_FOR_A_WHILE, instance_id="x"))
        del room.clients["a"]
        room.now_ms += SESSION_MS - 1
        room.clients["b"].beat()
        assert room.sizes() == [3]
        room.now_ms += 1
        room.group.tick(room.now_ms)
        room.settle()
        assert room.sizes() == [6]


class TestCommitting:
    def test_who_may(self, room: Room) -> None:
        room.group.check_commit("", None, -1, 0, transaction=False)
        client = room.enter("a")
        room.group.check_commit("a", None, client.epoch, 0, transaction=False)
        room.group.check_commit("", None, -1, 0, transaction=True)
        for member_id, epoch, refusal in [
            ("", -1, MemberUnknown),
            ("b", 1, MemberUnknown),
            ("a", 1, MemberEpochStale),
            ("a", 3, MemberEpochStale),
        ]:
            with pytest.raises(refusal):
                room.group.check_commit(member_id, None, epoch, 0, transaction=False)


def test_members_have_a_bound() -> None:
    room = Room(members_max=2)
    room.enter("a")
    room.enter("b")
    with pytest.raises(GroupFull):
        room.enter("c")
    room.beat(Beat("a", LEAVE))
    room.enter("c")


EVENTS = st.lists(
    st.tuples(st.sampled_from(["enter", "beat", "slow", "quick", "leave", "lose", "pass", "topics", "away"]), st.integers(0, 5)),
    max_size=80,
)


@given(EVENTS)
def test_no_partition_is_ever_read_by_two(events: list[tuple[str, int]]) -> None:
    room = Room(partitions=5)
    for number, (event, which) in enumerate(events):
        names = list(room.clients)
        client = room.clients[names[which % len(names)]] if names else None
        try:
            if event == "enter":
                room.enter(f"m{number}", instance_id=f"i{which}" if which < 2 else None)
            elif event == "topics":
                room.topics["t"] = topic("t", which + 1)
            elif event == "pass":
                room.now_ms += (1, 5_000, 20_000, 44_999, 45_000, 60_000)[which]
                room.group.tick(room.now_ms)
            elif client is None:
                continue
            elif event in ("slow", "quick"):
                client.slow = event == "slow"
                client.take()
            elif event == "beat":
                client.beat()
            elif event == "lose":  # the answer does not arrive
                room.beat(Beat(client.id, client.epoch, owned=client.owned, topics=("t",)))
                client.lost = True
            elif event == "leave":
                del room.clients[client.id]
                room.beat(Beat(client.id, LEAVE))
            elif event == "away":
                del room.clients[client.id]
                instance_id = client.said.get("instance_id")
                room.beat(Beat(client.id, LEAVE if instance_id is None else LEAVE_FOR_A_WHILE, instance_id))
        except (MemberUnknown, MemberEpochFenced):
            if client is not None and client.id in room.clients:
                client.epoch, client.told, client.owned = JOIN, NOTHING, NOTHING
        except GroupProblem:
            room.clients.pop(f"m{number}", None)
        check_apart(room)
    for client in room.clients.values():
        client.slow = False
        client.take()
    room.now_ms += SESSION_MS  # who went for a while does not come back
    room.group.tick(room.now_ms)
    for _ in range(12):
        for client in list(room.clients.values()):
            try:
                client.beat()
            except (MemberUnknown, MemberEpochFenced):
                client.epoch, client.told, client.owned = JOIN, NOTHING, NOTHING
            except (InstanceFenced, InstanceUnreleased):
                del room.clients[client.id]  # another process has its place
            check_apart(room)
    if room.clients:
        assert room.group.state is ConsumerState.STABLE
        assert sum(room.sizes()) == room.topics["t"].partitions


def check_apart(room: Room) -> None:
    """Among those that the group knows at the epoch that they believe in; others were fenced and will be told."""
    seen: set[Any] = set()
    for member in room.group.members.values():
        assert not seen & member.holds
        seen |= member.holds
    owned: set[Any] = set()
    for client in room.clients.values():
        member = room.group.members.get(client.id)
        if member is not None and client.epoch in (member.epoch, member.previous_epoch) and client.epoch != JOIN:
            assert not owned & client.owned
            owned |= client.owned
