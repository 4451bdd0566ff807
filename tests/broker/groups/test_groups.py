"""The groups of a node: waits, timers, bounds, and what survives its end."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from broker.engine.base import StateChange, StateSpace
from broker.errors import Overloaded
from broker.groups.classic import ClassicState
from broker.groups.classic_member import Join
from broker.groups.group_errors import (
    GenerationIllegal,
    GroupFull,
    GroupIdInvalid,
    GroupNotEmpty,
    GroupUnknown,
    InstanceFenced,
    MemberIdRequired,
    MemberUnknown,
    RebalanceUnderWay,
    SessionTimeoutInvalid,
)
from broker.groups.keeping import PART_BYTES
from broker.groups.offsets import GroupOffset
from tests.broker.groups.hall import Hall, OpenHall

SUBSCRIPTION = b"\0\1" + b"\0\0\0\1" + b"\0\6orders" + b"\xff\xff\xff\xff"
WEEK_MS = 7 * 86_400_000


class TestMembers:
    async def test_members_come_go_and_share(self, hall: Hall) -> None:
        joined = await hall.settle("g", 3)
        assert len({one.leader for one in joined}) == 1
        hall.groups.leave("g", [(joined[0].member_id, None)])
        for one in joined[1:]:
            with pytest.raises(RebalanceUnderWay):
                hall.groups.heartbeat("g", one.member_id, None, one.generation)
        left = await asyncio.gather(*[hall.join("g", one.member_id) for one in joined[1:]])
        assert {one.generation for one in left} == {joined[0].generation + 1}

    async def test_a_silent_member_is_found_dead_by_the_timer(self, hall: Hall) -> None:
        members = await hall.settle("g", 2)
        sessions_ms = (60_000, 100)
        alive, dead = await asyncio.gather(
            *[hall.join("g", one.member_id, session_timeout_ms=ms) for one, ms in zip(members, sessions_ms, strict=True)]
        )
        for _ in range(2_000):
            await asyncio.sleep(0.02)
            try:
                hall.groups.heartbeat("g", alive.member_id, None, alive.generation)
            except RebalanceUnderWay:
                break
        again = await hall.join("g", alive.member_id)
        assert [one[0] for one in again.members] == [alive.member_id]
        with pytest.raises(MemberUnknown):
            hall.groups.heartbeat("g", dead.member_id, None, dead.generation)

    async def test_who_waits_and_goes_away_leaves_the_wait(self, hall: Hall) -> None:
        first, second = await hall.settle("g", 2)
        waiting = asyncio.create_task(hall.join("g", first.member_id, session_timeout_ms=300))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        group = hall.groups.find("g")
        assert group is not None
        assert group.members[first.member_id].joining is None
        again = await hall.join("g", second.member_id)
        assert [one[0] for one in again.members] == [second.member_id]

    @pytest.mark.parametrize("timeout_ms", [0, 5_999, 1_800_001])
    async def test_session_timeouts_have_bounds(self, open_hall: OpenHall, timeout_ms: int) -> None:
        hall = open_hall(session_timeout_ms_min=6_000)
        with pytest.raises(SessionTimeoutInvalid):
            await hall.join("g", session_timeout_ms=timeout_ms)
        assert hall.groups.names() == []

    async def test_strangers(self, hall: Hall) -> None:
        for name in ("", "n" * 256):
            with pytest.raises(GroupIdInvalid):
                await hall.join(name)
        with pytest.raises(MemberUnknown):
            await hall.join("g", "stranger")
        with pytest.raises(MemberUnknown):
            hall.groups.heartbeat("g", "stranger", None, 1)
        (told,) = hall.groups.leave("g", [("stranger", None)])
        assert isinstance(told, MemberUnknown)
        await hall.settle("g", 1)
        (told,) = hall.groups.leave("g", [("stranger", None)])
        assert isinstance(told, MemberUnknown)


class TestRestart:
    async def test_members_go_on_where_they_were(self, hall: Hall) -> None:
        joined = await hall.settle("g", 3, protocols=(("range", bytes(PART_BYTES + 5)),))
        groups = await hall.again()
        group = groups.find("g")
        assert group is not None
        assert (group.state, group.generation, group.protocol) == (ClassicState.STABLE, joined[0].generation, "range")
        for one in joined:
            groups.heartbeat("g", one.member_id, None, one.generation)
            assert await hall.sync("g", one) == one.member_id.encode()
            assert len(group.members[one.member_id].metadata("range")) == PART_BYTES + 5

    async def test_who_does_not_come_back_dies(self, hall: Hall) -> None:
        await hall.settle("g", 2, session_timeout_ms=2_000)
        groups = await hall.again()
        for _ in range(500):
            await asyncio.sleep(0.02)
            group = groups.find("g")
            if group is not None and group.empty:
                break
        assert group is not None
        assert group.state is ClassicState.EMPTY

    async def test_an_unfinished_rebalance_is_begun_again(self, hall: Hall) -> None:
        (joined,) = await hall.settle("g", 1)
        again = await hall.join("g", joined.member_id)
        assert again.generation == joined.generation + 1
        groups = await hall.again()
        with pytest.raises(GenerationIllegal):
            groups.heartbeat("g", joined.member_id, None, again.generation)
        assert (await hall.join("g", joined.member_id)).generation == joined.generation + 1

    async def test_a_static_member_is_known_by_its_newest_id(self, hall: Hall) -> None:
        joined = await hall.join("g", instance_id="x")
        await hall.sync("g", joined, {joined.member_id: b"mine"}, "x")
        newer = await hall.join("g", instance_id="x")
        groups = await hall.again()
        with pytest.raises(InstanceFenced):
            groups.heartbeat("g", joined.member_id, "x", joined.generation)
        groups.heartbeat("g", newer.member_id, "x", newer.generation)
        assert await hall.sync("g", newer, None, "x") == b"mine"

    async def test_what_the_members_left_leaves_the_log(self, hall: Hall) -> None:
        joined = await hall.settle("g", 3)
        assert len(list(hall.engine.states(StateSpace.GROUP))) == 4
        hall.groups.leave("g", [(one.member_id, None) for one in joined])
        await asyncio.sleep(0)
        await hall.again()
        assert len(list(hall.engine.states(StateSpace.GROUP))) == 1
        await hall.groups.delete("g")
        assert list(hall.engine.states(StateSpace.GROUP)) == []
        assert (await hall.again()).names() == []

    async def test_a_group_that_cannot_be_read_is_made_anew(self, hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
        await hall.settle("g", 1)
        await hall.settle("h", 1)
        key = min(key for key, value in hall.engine.states(StateSpace.GROUP) if b"\xa1g" in value[:4])
        await hall.engine.append([], changes=[StateChange(StateSpace.GROUP, key, b"\xc1")])
        groups = await hall.again()
        assert groups.names() == ["h"]
        assert "cannot be read" in caplog.text
        await hall.settle("g", 1)

    async def test_a_group_that_cannot_be_saved(self, hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
        (joined,) = await hall.settle("g", 1)
        again = await hall.join("g", joined.member_id)

        async def refuse(*_: Any, **__: Any) -> None:
            raise Overloaded("the queue", 1, 100)

        with monkeypatch.context() as patched:
            patched.setattr(hall.engine, "append", refuse)
            with pytest.raises(Overloaded):
                await hall.sync("g", again, {again.member_id: b"x"})
        with pytest.raises(RebalanceUnderWay):
            hall.groups.heartbeat("g", again.member_id, None, again.generation)
        last = await hall.join("g", again.member_id)
        assert await hall.sync("g", last, {last.member_id: b"y"}) == b"y"

    async def test_a_group_that_cannot_be_deleted_is_still_there(self, hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
        (joined,) = await hall.settle("g", 1)
        hall.groups.leave("g", [(joined.member_id, None)])
        await asyncio.sleep(0)

        async def refuse(*_: Any, **__: Any) -> None:
            raise Overloaded("the queue", 1, 100)

        with monkeypatch.context() as patched:
            patched.setattr(hall.engine, "append", refuse)
            with pytest.raises(Overloaded):
                await hall.groups.delete("g")
        assert hall.groups.names() == ["g"]
        await hall.groups.delete("g")
        assert (await hall.again()).names() == []


class TestOffsets:
    async def commit(self, hall: Hall, name: str, offset: int, *, member: Any = None, topic: str = "orders") -> None:
        topic_id = hall.engine.topics()[topic].topic_id
        who = ("", None, -1) if member is None else (member.member_id, None, member.generation)
        await hall.groups.commit(name, *who, [GroupOffset(topic_id, 0, offset)])

    async def test_a_consumer_without_members(self, hall: Hall) -> None:
        await hall.engine.create_topic("orders", 1, {})
        await self.commit(hall, "g", 5)
        assert (await hall.again()).names() == ["g"]
        (kept,) = hall.groups.offsets.all("g")
        assert kept.offset == 5
        await hall.groups.delete("g")
        assert hall.groups.names() == []
        assert hall.groups.offsets.all("g") == []

    async def test_only_members_of_this_generation(self, hall: Hall) -> None:
        await hall.engine.create_topic("orders", 1, {})
        (joined,) = await hall.settle("g", 1)
        await self.commit(hall, "g", 5, member=joined)
        with pytest.raises(MemberUnknown):
            await self.commit(hall, "g", 6)
        with pytest.raises(GenerationIllegal):
            await hall.groups.commit("g", joined.member_id, None, joined.generation - 1, [])
        with pytest.raises(GenerationIllegal):
            await hall.groups.commit("nothing", "m", None, 3, [])
        hall.groups.check_transactional_commit("g", "", None, -1)
        with pytest.raises(GenerationIllegal):
            hall.groups.check_transactional_commit("g", joined.member_id, None, 77)

    async def test_what_nobody_uses_expires(self, hall: Hall) -> None:
        await hall.engine.create_topic("orders", 1, {})
        await self.commit(hall, "g", 5)
        assert await hall.groups.expire() == 0
        hall.clock.by_ms += WEEK_MS + 1_000
        assert await hall.groups.expire() == 1
        assert hall.groups.names() == []

    async def test_what_members_subscribe_to_does_not(self, hall: Hall) -> None:
        await hall.engine.create_topic("orders", 1, {})
        await hall.engine.create_topic("others", 1, {})
        (joined,) = await hall.settle("g", 1, protocols=(("range", SUBSCRIPTION),), session_timeout_ms=1_800_000)
        await self.commit(hall, "g", 5, member=joined)
        await self.commit(hall, "g", 6, member=joined, topic="others")
        before_ms = hall.clock.by_ms
        hall.clock.by_ms += WEEK_MS + 1_000
        assert await hall.groups.expire() == 1
        hall.clock.by_ms = before_ms
        orders = hall.engine.topics()["orders"].topic_id
        assert [one.topic_id for one in hall.groups.offsets.all("g")] == [orders]
        group = hall.groups.find("g")
        assert group is not None
        subscribed = hall.groups.subscribed(group)
        assert subscribed is not None
        assert (subscribed("orders"), subscribed("others")) == (True, False)

    async def test_those_of_a_deleted_topic_go(self, hall: Hall) -> None:
        await hall.engine.create_topic("orders", 1, {})
        await self.commit(hall, "g", 5)
        await hall.engine.delete_topic("orders")
        await hall.engine.create_topic("orders", 1, {})
        topic_id = hall.engine.topics()["orders"].topic_id
        assert hall.groups.offsets.committed("g", topic_id, 0) is None
        assert await hall.groups.expire() == 1

    async def test_only_empty_groups_are_deleted(self, hall: Hall) -> None:
        await hall.settle("g", 1)
        with pytest.raises(GroupNotEmpty):
            await hall.groups.delete("g")
        with pytest.raises(GroupUnknown):
            await hall.groups.delete("h")


class TestBounds:
    async def test_groups(self, open_hall: OpenHall) -> None:
        hall = open_hall(groups_max=2)
        await hall.settle("a", 1)
        await hall.settle("b", 1)
        with pytest.raises(GroupFull, match="groups_max"):
            await hall.join("c")
        with pytest.raises(GroupFull, match="groups_max"):
            await hall.groups.commit("c", "", None, -1, [GroupOffset(bytes(16), 0, 5)])
        await hall.groups.commit("c", "", None, -1, [])  # of which all were refused
        assert hall.groups.names() == ["a", "b"]

    async def test_places_that_nobody_came_for_are_given_to_others(self, open_hall: OpenHall) -> None:
        """Of those who were told an id; groups with offsets or members stay."""
        hall = open_hall(groups_max=3)
        topic = await hall.engine.create_topic("orders", 1, {})
        await hall.groups.commit("offsets", "", None, -1, [GroupOffset(topic.topic_id, 0, 5)])
        await hall.settle("members", 1)
        asked = Join("", None, "client", "/127.0.0.1", 60_000, 60_000, "consumer", (("range", b"r"),))
        with pytest.raises(MemberIdRequired) as told:
            await hall.groups.join("told", asked)
        await hall.settle("new", 1)
        assert hall.groups.names() == ["members", "new", "offsets"]
        with pytest.raises(MemberUnknown):
            await hall.groups.join("told", msgspec.structs.replace(asked, member_id=told.value.member_id))
        with pytest.raises(GroupFull, match="groups_max"):
            await hall.groups.join("told", asked)

    async def test_members(self, open_hall: OpenHall) -> None:
        hall = open_hall(members_max=2)
        await hall.settle("g", 2)
        with pytest.raises(GroupFull, match="members_max"):
            await hall.join("g")

    async def test_what_one_member_says(self, open_hall: OpenHall) -> None:
        hall = open_hall(member_bytes_max=2_000)
        await hall.join("g", protocols=(("range", bytes(1_995)),))
        with pytest.raises(GroupFull, match="member_bytes_max"):
            await hall.join("g", protocols=(("range", bytes(1_996)),))

    async def test_what_all_members_say(self, open_hall: OpenHall) -> None:
        hall = open_hall(members_bytes_max=2_500)
        (joined,) = await hall.settle("g", 1, protocols=(("range", bytes(1_500)),))
        with pytest.raises(GroupFull, match="members_bytes_max"):
            await hall.join("h", protocols=(("range", bytes(1_500)),))
        hall.groups.leave("g", [(joined.member_id, None)])
        await hall.join("h", protocols=(("range", bytes(1_500)),))
        assert 1_505 < hall.groups.stats().members_bytes < 1_600, "its names count as well"

    async def test_names_of_instances(self, hall: Hall) -> None:
        with pytest.raises(GroupFull):
            await hall.join("g", instance_id="i" * 256)

    async def test_groups_that_never_came_to_be_are_forgotten(self, open_hall: OpenHall) -> None:
        hall = open_hall(groups_max=1)
        for name in ("a", "b"):
            with pytest.raises(Exception, match="protocol"):
                await hall.join(name, protocols=())
        assert hall.groups.names() == []
