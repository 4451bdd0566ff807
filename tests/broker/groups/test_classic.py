"""The classic group's state machine, driven by hand: no clock, no sockets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.groups.classic import ClassicGroup, ClassicState
from broker.groups.classic_member import Answer, Join, Joined, Sync, Synced
from broker.groups.group_errors import (
    GenerationIllegal,
    GroupFull,
    InstanceFenced,
    MemberIdRequired,
    MemberUnknown,
    ProtocolInconsistent,
    RebalanceUnderWay,
)
from broker.groups.group_options import GroupOptions

SESSION_MS, REBALANCE_MS, DELAY_MS = 10_000, 60_000, 3_000
RANGE = (("range", b"r"),)


class Room:
    """A group and its clock. Tickets are numbers; `told` is what each was answered."""

    def __init__(self, **options: Any) -> None:
        self.group = ClassicGroup("readers", GroupOptions(**options))
        self.now_ms = 0
        self.tickets = 0
        self.told: dict[int, Answer] = {}

    def collect(self) -> None:
        for ticket, answer in self.group.answers:
            assert isinstance(ticket, int)
            assert ticket not in self.told, "a request is answered once"
            self.told[ticket] = answer
        self.group.answers.clear()

    def join(self, member_id: str = "", new_id: str = "", **members: Any) -> int:
        self.tickets += 1
        given_members = {"id_first": False, "instance_id": None, "protocols": RANGE, "protocol_type": "consumer", **members}
        asked = Join(
            member_id=member_id,
            client_id="client",
            client_host="/127.0.0.1",
            session_timeout_ms=SESSION_MS,
            rebalance_timeout_ms=REBALANCE_MS,
            **given_members,
        )
        try:
            self.group.join(self.tickets, asked, new_id, self.now_ms)
        finally:
            self.collect()
        return self.tickets

    def sync(self, member_id: str, generation: int, assignments: dict[str, bytes] | None = None, **members: Any) -> int:
        self.tickets += 1
        asked = Sync(member_id, members.pop("instance_id", None), generation, assignments=assignments or {}, **members)
        self.group.sync(self.tickets, asked, self.now_ms)
        self.collect()
        return self.tickets

    def beat(self, member_id: str, generation: int, instance_id: str | None = None) -> None:
        self.group.heartbeat(member_id, instance_id, generation, self.now_ms)

    def leave(self, member_id: str, instance_id: str | None = None) -> None:
        self.group.leave(member_id, instance_id, self.now_ms)
        self.collect()

    def pass_ms(self, by_ms: int) -> None:
        """As the timers would: stopping at each time that the group names."""
        end_ms = self.now_ms + by_ms
        while (next_ms := self.group.next_ms()) is not None and next_ms <= end_ms:
            self.now_ms = max(self.now_ms, next_ms)
            self.group.tick(self.now_ms)
            self.collect()
        self.now_ms = end_ms

    def joined(self, ticket: int) -> Joined:
        answer = self.told[ticket]
        assert isinstance(answer, Joined), answer
        return answer

    def assignment(self, ticket: int) -> bytes:
        answer = self.told[ticket]
        assert isinstance(answer, Synced), answer
        return answer.assignment

    def settle(self, *names: str, **members: Any) -> int:
        """A stable group of these; its generation."""
        tickets = [self.join(new_id=name, **members) for name in names]
        self.pass_ms(DELAY_MS * 2)
        generation = self.joined(tickets[0]).generation
        self.assign(generation, *names)
        return generation

    def assign(self, generation: int, *names: str, instances: dict[str, str] | None = None) -> None:
        instances = instances or {}
        assert self.group.leader is not None
        plan = {name: name.encode() for name in names}
        for name in sorted(names, key=lambda one: one == self.group.leader):
            own = plan if name == self.group.leader else {}
            self.sync(name, generation, own, instance_id=instances.get(name))
        assert self.group.state is ClassicState.STABLE


@pytest.fixture
def room() -> Room:
    return Room()


class TestJoining:
    def test_the_first_rebalance_waits_for_others(self, room: Room) -> None:
        first = room.join(new_id="a")
        room.pass_ms(DELAY_MS - 1)
        second = room.join(new_id="b")
        assert room.told == {}
        room.pass_ms(1)
        assert room.told == {}, "one came during the delay, so it waits once more"
        room.pass_ms(DELAY_MS)
        assert room.joined(first).members == (("a", None, b"r"), ("b", None, b"r"))
        assert room.joined(second) == Joined("b", 1, "consumer", "range", "a")

    def test_it_never_waits_longer_than_the_rebalance_timeout(self, room: Room) -> None:
        first = room.join(new_id="m0")
        for number in range(1, 40):
            room.pass_ms(DELAY_MS - 100)
            if first in room.told:
                break
            room.join(new_id=f"m{number}")
        assert first in room.told
        assert room.now_ms <= REBALANCE_MS + DELAY_MS

    def test_a_new_member_is_told_its_id_first(self, room: Room) -> None:
        with pytest.raises(MemberIdRequired) as told:
            room.join(new_id="client-1", id_first=True)
        assert told.value.member_id == "client-1"
        assert not room.group.empty
        ticket = room.join("client-1", id_first=True)
        room.pass_ms(DELAY_MS)
        assert room.joined(ticket).member_id == "client-1"

    def test_an_id_that_was_given_is_good_for_one_session_timeout(self, room: Room) -> None:
        with pytest.raises(MemberIdRequired):
            room.join(new_id="client-1", id_first=True)
        room.pass_ms(SESSION_MS)
        with pytest.raises(MemberUnknown):
            room.join("client-1", id_first=True)
        assert room.group.empty

    def test_a_pending_member_keeps_a_rebalance_open(self, room: Room) -> None:
        generation = room.settle("a")
        with pytest.raises(MemberIdRequired):
            room.join(new_id="b", id_first=True)
        ticket = room.join("a")
        assert ticket not in room.told, "b has an id and is about to join"
        other = room.join("b", id_first=True)
        assert room.joined(ticket).generation == room.joined(other).generation == generation + 1

    def test_the_others_are_told_to_join_again(self, room: Room) -> None:
        generation = room.settle("a", "b")
        joining = room.join(new_id="c")
        for name in ("a", "b"):
            with pytest.raises(RebalanceUnderWay):
                room.beat(name, generation)
        a, b = room.join("a"), room.join("b")
        assert {room.joined(one).generation for one in (a, b, joining)} == {generation + 1}
        assert [one[0] for one in room.joined(a).members] == ["a", "b", "c"]

    def test_who_does_not_join_in_time_is_out(self, room: Room) -> None:
        generation = room.settle("a", "b")
        ticket = room.join(new_id="c")
        again = room.join("a")
        for _ in range(REBALANCE_MS // 5_000):
            with pytest.raises(RebalanceUnderWay):
                room.beat("b", generation)
            room.pass_ms(5_000)
        assert {room.joined(one).generation for one in (ticket, again)} == {generation + 1}
        assert sorted(room.group.members) == ["a", "c"]
        with pytest.raises(MemberUnknown):
            room.beat("b", generation)

    def test_the_leader_that_joins_again_rebalances_and_a_follower_does_not(self, room: Room) -> None:
        generation = room.settle("a", "b")
        follower = room.join("b")
        assert room.joined(follower).generation == generation
        assert room.group.state is ClassicState.STABLE
        room.join("a")
        assert room.group.state is ClassicState.PREPARING

    def test_a_follower_with_another_subscription_rebalances(self, room: Room) -> None:
        room.settle("a", "b")
        room.join("b", protocols=(("range", b"other"),))
        assert room.group.state is ClassicState.PREPARING

    def test_a_join_whose_answer_was_lost_is_answered_again(self, room: Room) -> None:
        tickets = [room.join(new_id=name) for name in ("a", "b")]
        room.pass_ms(DELAY_MS * 2)
        again = room.join("a")
        assert room.joined(again) == room.joined(tickets[0])
        assert room.group.state is ClassicState.COMPLETING

    def test_a_member_that_asks_twice_is_answered_twice(self, room: Room) -> None:
        first = room.join(new_id="a")
        second = room.join("a")
        assert isinstance(room.told[first], RebalanceUnderWay)
        room.pass_ms(DELAY_MS * 2)
        assert room.joined(second).member_id == "a"

    def test_an_unknown_member(self, room: Room) -> None:
        with pytest.raises(MemberUnknown):
            room.join("nobody")

    def test_without_a_delay(self) -> None:
        room = Room(initial_rebalance_delay_ms=0)
        ticket = room.join(new_id="a")
        room.pass_ms(0)
        assert room.joined(ticket).leader == "a"


class TestProtocols:
    def test_the_one_that_most_prefer_of_those_that_all_know(self, room: Room) -> None:
        tickets = [
            room.join(new_id="a", protocols=(("sticky", b""), ("range", b"1"), ("own", b""))),
            room.join(new_id="b", protocols=(("range", b"2"), ("sticky", b""))),
            room.join(new_id="c", protocols=(("range", b"3"), ("sticky", b""))),
        ]
        room.pass_ms(DELAY_MS * 2)
        assert [room.joined(ticket).protocol for ticket in tickets] == ["range"] * 3
        assert [metadata for _, _, metadata in room.joined(tickets[0]).members] == [b"1", b"2", b"3"]

    @pytest.mark.parametrize(
        "members", [{"protocols": ()}, {"protocol_type": ""}, {"protocols": (("own", b""),)}, {"protocol_type": "connect"}]
    )
    def test_nothing_in_common(self, room: Room, members: dict[str, Any]) -> None:
        room.settle("a")
        with pytest.raises(ProtocolInconsistent):
            room.join(new_id="b", **members)
        assert room.group.state is ClassicState.STABLE

    def test_an_empty_group_takes_another_type(self, room: Room) -> None:
        room.settle("a")
        room.leave("a")
        assert room.group.state is ClassicState.EMPTY
        ticket = room.join(new_id="b", protocol_type="connect")
        room.pass_ms(DELAY_MS * 2)
        assert room.joined(ticket).protocol_type == "connect"


class TestSyncing:
    def test_followers_wait_for_the_leader(self, room: Room) -> None:
        for name in ("a", "b"):
            room.join(new_id=name)
        room.pass_ms(DELAY_MS * 2)
        follower = room.sync("b", 1)
        assert follower not in room.told
        leader = room.sync("a", 1, {"a": b"left", "b": b"right"})
        assert (room.assignment(leader), room.assignment(follower)) == (b"left", b"right")
        assert room.group.dirty
        assert room.assignment(room.sync("b", 1)) == b"right", "asked again, it is told again"

    def test_a_member_that_the_leader_forgot_has_nothing(self, room: Room) -> None:
        for name in ("a", "b"):
            room.join(new_id=name)
        room.pass_ms(DELAY_MS * 2)
        room.sync("a", 1, {"a": b"all", "stranger": b"x"})
        assert room.assignment(room.sync("b", 1)) == b""

    def test_one_that_joins_meanwhile_sends_them_back(self, room: Room) -> None:
        for name in ("a", "b"):
            room.join(new_id=name)
        room.pass_ms(DELAY_MS * 2)
        waiting = room.sync("b", 1)
        room.join(new_id="c")
        assert isinstance(room.told[waiting], RebalanceUnderWay)
        with pytest.raises(RebalanceUnderWay):
            room.sync("a", 1, {})

    @pytest.mark.parametrize(
        ("arguments", "refusal"),
        [
            ({"member_id": "x", "generation": 1}, MemberUnknown),
            ({"member_id": "a", "generation": 2}, GenerationIllegal),
            ({"member_id": "a", "generation": 1, "protocol": "sticky"}, ProtocolInconsistent),
            ({"member_id": "a", "generation": 1, "protocol_type": "connect"}, ProtocolInconsistent),
            ({"member_id": "a", "generation": 1, "instance_id": "i"}, MemberUnknown),
        ],
    )
    def test_refusals(self, room: Room, arguments: dict[str, Any], refusal: type[Exception]) -> None:
        room.join(new_id="a")
        room.pass_ms(DELAY_MS * 2)
        with pytest.raises(refusal):
            room.sync(**arguments)

    def test_who_never_fetches_its_part_is_out(self, room: Room) -> None:
        for name in ("a", "b"):
            room.join(new_id=name)
        room.pass_ms(DELAY_MS * 2)
        room.sync("a", 1, {"a": b"left", "b": b"right"})
        for _ in range(REBALANCE_MS // 5_000):
            room.beat("b", 1)
            if room.group.state is ClassicState.STABLE:
                room.beat("a", 1)
            room.pass_ms(5_000)
        assert list(room.group.members) == ["a"]
        assert room.group.state is ClassicState.PREPARING

    def test_what_could_not_be_saved_is_done_again(self, room: Room) -> None:
        generation = room.settle("a")
        room.group.unsaved(generation, room.now_ms)
        with pytest.raises(RebalanceUnderWay):
            room.beat("a", generation)


class TestLeavingAndDying:
    def test_the_last_one_leaves_an_empty_group(self, room: Room) -> None:
        generation = room.settle("a")
        room.group.dirty = False
        room.leave("a")
        assert room.group.state is ClassicState.EMPTY
        assert room.group.generation == generation + 1
        assert room.group.dirty
        assert room.group.empty

    def test_a_silent_member_dies_and_the_others_go_on(self, room: Room) -> None:
        generation = room.settle("a", "b")
        for _ in range(2):
            room.pass_ms(SESSION_MS // 2 - 1)
            room.beat("b", generation)
        room.pass_ms(2)
        with pytest.raises(RebalanceUnderWay):
            room.beat("b", generation)
        ticket = room.join("b")
        assert room.joined(ticket).leader == "b", "the leader is dead: who is there leads"
        assert [one[0] for one in room.joined(ticket).members] == ["b"]

    def test_one_that_dies_while_the_others_wait_for_it(self, room: Room) -> None:
        room.settle("a", "b", "c")
        tickets = [room.join("a"), room.join("b")]
        room.pass_ms(SESSION_MS)
        assert [room.joined(ticket).generation for ticket in tickets] == [2, 2]

    def test_one_that_leaves_while_the_others_wait_for_it(self, room: Room) -> None:
        room.settle("a", "b")
        ticket = room.join("a")
        room.leave("b")
        assert [one[0] for one in room.joined(ticket).members] == ["a"]

    def test_who_leaves_while_it_waits_is_told(self, room: Room) -> None:
        room.settle("a", "b")
        ticket = room.join("a")
        room.leave("a")
        assert isinstance(room.told[ticket], MemberUnknown)

    def test_a_broken_connection_gives_the_member_its_session_to_come_back(self, room: Room) -> None:
        generation = room.settle("a", "b")
        ticket = room.join("a")
        room.group.abandon(ticket, room.now_ms)
        room.pass_ms(SESSION_MS - 1)
        with pytest.raises(RebalanceUnderWay):
            room.beat("b", generation)
        room.pass_ms(1)
        assert sorted(room.group.members) == ["b"]

    def test_a_pending_member_leaves(self, room: Room) -> None:
        with pytest.raises(MemberIdRequired):
            room.join(new_id="b", id_first=True)
        room.leave("b")
        assert room.group.empty

    def test_strangers(self, room: Room) -> None:
        room.settle("a")
        with pytest.raises(MemberUnknown):
            room.leave("b")
        with pytest.raises(MemberUnknown):
            room.leave("", "instance")
        with pytest.raises(MemberUnknown):
            room.leave("")


class TestStaticMembers:
    def stable(self, room: Room) -> int:
        tickets = [room.join(new_id=f"{name}-1", instance_id=name) for name in ("x", "y")]
        room.pass_ms(DELAY_MS * 2)
        generation = room.joined(tickets[0]).generation
        room.assign(generation, "x-1", "y-1", instances={"x-1": "x", "y-1": "y"})
        return generation

    def test_a_new_process_takes_the_place_without_a_rebalance(self, room: Room) -> None:
        generation = self.stable(room)
        room.group.dirty = False
        joined = room.joined(room.join(new_id="y-2", instance_id="y"))
        assert (joined.member_id, joined.generation, joined.members) == ("y-2", generation, ())
        assert room.group.state is ClassicState.STABLE
        assert room.group.dirty, "a restart must know the new id"
        assert room.assignment(room.sync("y-2", generation, instance_id="y")) == b"y-1"
        with pytest.raises(InstanceFenced):
            room.beat("y-1", generation, "y")

    def test_a_leader_that_comes_back_assigns_nothing(self, room: Room) -> None:
        self.stable(room)
        joined = room.joined(room.join(new_id="x-2", instance_id="x"))
        assert joined.leader == "x-2"
        assert joined.skip_assignment
        assert [one[0] for one in joined.members] == ["y-1", "x-2"]

    def test_an_older_client_is_told_of_another_leader(self, room: Room) -> None:
        self.stable(room)
        joined = room.joined(room.join(new_id="x-2", instance_id="x", may_skip=False))
        assert joined.leader == "x-1"
        assert not joined.skip_assignment
        assert joined.members == ()

    def test_the_older_process_is_fenced_where_it_waits(self, room: Room) -> None:
        ticket = room.join(new_id="x-1", instance_id="x")
        again = room.join(new_id="x-2", instance_id="x")
        assert isinstance(room.told[ticket], InstanceFenced)
        room.pass_ms(DELAY_MS * 2)
        assert room.joined(again).leader == "x-2"

    def test_it_is_not_given_up_by_a_rebalance_but_by_its_session(self, room: Room) -> None:
        generation = self.stable(room)
        ticket = room.join(new_id="z-1", instance_id="z")
        again = room.join("x-1", instance_id="x")
        for _ in range(REBALANCE_MS // 5_000):
            if ticket in room.told:
                break
            with pytest.raises(RebalanceUnderWay):
                room.beat("y-1", generation, "y")
            room.pass_ms(5_000)
        assert [one[0] for one in room.joined(again).members] == ["x-1", "y-1", "z-1"]

    def test_leaving_by_its_instance_id(self, room: Room) -> None:
        self.stable(room)
        room.leave("", "y")
        assert list(room.group.members) == ["x-1"]
        with pytest.raises(InstanceFenced):
            room.leave("x-0", "x")

    def test_a_known_id_with_a_foreign_instance(self, room: Room) -> None:
        self.stable(room)
        with pytest.raises(InstanceFenced):
            room.join("x-1", instance_id="y")


class TestOrderOfChecks:
    """While a rebalance is under way: who asks, then for which generation, and only then that there is one, as Kafka has it."""

    @pytest.fixture
    def generation(self, room: Room) -> int:
        generation = room.settle("a", "b")
        room.join("a", protocols=(("range", b"new"),))
        assert room.group.state is ClassicState.PREPARING
        return generation

    @pytest.mark.parametrize(
        ("member_id", "instance_id", "behind", "refusal"),
        [
            ("x", None, 1, MemberUnknown),
            ("b", "nobody's", 0, MemberUnknown),
            ("b", None, 1, GenerationIllegal),
            ("b", None, -1, GenerationIllegal),
            ("b", None, 0, RebalanceUnderWay),
        ],
    )
    def test_heartbeat_and_sync(
        self, room: Room, generation: int, member_id: str, instance_id: str | None, behind: int, refusal: type[Exception]
    ) -> None:
        with pytest.raises(refusal):
            room.beat(member_id, generation - behind, instance_id)
        with pytest.raises(refusal):
            room.sync(member_id, generation - behind, instance_id=instance_id)

    def test_the_protocol_comes_before_the_rebalance(self, room: Room, generation: int) -> None:
        with pytest.raises(ProtocolInconsistent):
            room.sync("b", generation, protocol="sticky")

    def test_a_join_is_refused_for_its_protocols_before_its_member_id(self, room: Room, generation: int) -> None:
        for member_id in ("x", "b", ""):
            with pytest.raises(ProtocolInconsistent):
                room.join(member_id, protocols=(("sticky", b""),))
        with pytest.raises(MemberUnknown):
            room.join("x")

    def test_a_lone_member_cannot_change_to_protocols_that_it_did_not_offer(self, room: Room) -> None:
        room.settle("a")
        with pytest.raises(ProtocolInconsistent):
            room.join("a", protocols=(("sticky", b""),))
        room.join("a", protocols=(("sticky", b""), *RANGE))

    def test_leaving_and_committing_need_no_end_of_it(self, room: Room, generation: int) -> None:
        room.group.check_commit("b", None, generation, room.now_ms, transaction=False)
        with pytest.raises(GenerationIllegal):
            room.group.check_commit("b", None, generation - 1, room.now_ms, transaction=False)
        room.leave("b")
        assert room.group.generation == generation + 1, "a had joined, and waits for nobody any more"


class TestCommitting:
    def check(self, room: Room, member_id: str, generation: int, *, transaction: bool = False) -> None:
        room.group.check_commit(member_id, None, generation, room.now_ms, transaction=transaction)

    def test_who_may(self, room: Room) -> None:
        self.check(room, "", -1)
        generation = room.settle("a")
        self.check(room, "a", generation)
        for member_id, said, refusal in [
            ("", -1, MemberUnknown),
            ("b", generation, MemberUnknown),
            ("a", generation - 1, GenerationIllegal),
            ("a", -1, GenerationIllegal),
        ]:
            with pytest.raises(refusal):
                self.check(room, member_id, said)
        self.check(room, "", -1, transaction=True)

    def test_during_a_rebalance(self, room: Room) -> None:
        generation = room.settle("a", "b")
        tickets = [room.join("a")]
        self.check(room, "b", generation)
        tickets.append(room.join("b"))
        assert room.joined(tickets[0]).generation == generation + 1
        with pytest.raises(RebalanceUnderWay):
            self.check(room, "b", generation + 1)
        self.check(room, "b", generation + 1, transaction=True)


class TestBounds:
    def test_members(self) -> None:
        room = Room(members_max=2)
        with pytest.raises(MemberIdRequired):
            room.join(new_id="a", id_first=True)
        room.join(new_id="b")
        for id_first in (True, False):
            with pytest.raises(GroupFull):
                room.join(new_id="c", id_first=id_first)
        room.join("a", id_first=True)

    def test_an_assignment(self) -> None:
        room = Room(member_bytes_max=1_024)
        room.join(new_id="a")
        room.pass_ms(DELAY_MS * 2)
        with pytest.raises(GroupFull):
            room.sync("a", 1, {"a": bytes(1_025)})
        assert room.assignment(room.sync("a", 1, {"a": bytes(1_024)})) == bytes(1_024)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["join", "rejoin", "sync", "beat", "leave", "pass", "cut", "replace"]), st.integers(0, 3)),
    max_size=60,
)


@given(EVENTS)
def test_whatever_happens_the_living_end_up_in_one_generation(events: list[tuple[str, int]]) -> None:
    room = Room(members_max=8)
    numbers = iter(range(10_000))
    for event, which in events:
        known = [*room.group.members.values()]
        member = known[which % len(known)] if known else None
        generation = room.group.generation
        try:
            if event == "join":
                room.join(new_id=f"m{next(numbers)}", id_first=False)
            elif event == "replace":
                room.join(new_id=f"s{next(numbers)}", instance_id=f"i{which}")
            elif event == "pass":
                room.pass_ms((1, 2_000, 5_000, SESSION_MS)[which])
            elif member is None:
                continue
            elif event == "rejoin":
                room.join(member.id, instance_id=member.instance_id)
            elif event == "sync":
                room.sync(member.id, generation, {one.id: one.id.encode() for one in known}, instance_id=member.instance_id)
            elif event == "beat":
                room.beat(member.id, generation, member.instance_id)
            elif event == "leave":
                room.leave(member.id, member.instance_id)
            elif event == "cut":
                room.group.abandon(member.joining, room.now_ms) if member.joining is not None else None
        except (RebalanceUnderWay, GroupFull):
            room.collect()
        assert room.group.leader in room.group.members or not room.group.members
    settle_all(room)


def settle_all(room: Room) -> None:
    """Every member does what clients do until nothing changes: then all are in one generation, each with what it was assigned."""
    for _ in range(20):
        for member in list(room.group.members.values()):
            if room.group.state is ClassicState.PREPARING and member.joining is None:
                room.join(member.id, instance_id=member.instance_id)
            elif room.group.state is ClassicState.COMPLETING and member.syncing is None:
                plan = {one: one.encode() for one in room.group.members}
                room.sync(member.id, room.group.generation, plan, instance_id=member.instance_id)
            elif room.group.state is ClassicState.STABLE:
                room.beat(member.id, room.group.generation, member.instance_id)
                room.sync(member.id, room.group.generation, instance_id=member.instance_id)
        room.pass_ms(DELAY_MS)
    if room.group.members:
        assert room.group.state is ClassicState.STABLE
        for member in room.group.members.values():
            ticket = room.sync(member.id, room.group.generation, instance_id=member.instance_id)
            assert room.assignment(ticket) == member.assignment
    else:
        assert room.group.state is ClassicState.EMPTY
