"""Groups of the consumer protocol in their node: kept, brought back, woken, turned into the other kind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.engine.base import StateSpace, Topic
from broker.errors import Overloaded
from broker.groups.consumer import ConsumerGroup, ConsumerState
from broker.groups.consumer_member import JOIN, LEAVE, LEAVE_FOR_A_WHILE, Beat, Beaten
from broker.groups.group_errors import GroupFull, GroupIdInvalid, GroupUnknown, MemberUnknown, ProtocolInconsistent
from broker.groups.offsets import GroupOffset
from tests.broker.groups.hall import Hall, OpenHall


@pytest.fixture
async def topic(hall: Hall) -> Topic:
    return await hall.engine.create_topic("orders", 4, {})


async def beat(hall: Hall, member_id: str, epoch: int = JOIN, group: str = "g", **said: Any) -> Beaten:
    if epoch == JOIN:
        said = {"topics": ("orders",), "rebalance_timeout_ms": 10_000, "owned": frozenset(), **said}
    return await hall.groups.beat(group, Beat(member_id, epoch, **said), lambda name: True)


def group(hall: Hall, name: str = "g") -> ConsumerGroup:
    found = hall.groups.find(name)
    assert isinstance(found, ConsumerGroup)
    return found


async def share(hall: Hall) -> None:
    """Members a and b with two partitions each, both at epoch 3."""
    first = await beat(hall, "a")
    await beat(hall, "b")
    told = await beat(hall, "a", 2, owned=first.assigned)
    await beat(hall, "a", 2, owned=told.assigned)
    await beat(hall, "b", 3)
    assert group(hall).state is ConsumerState.STABLE


async def test_members_go_on_after_a_restart(hall: Hall, topic: Topic) -> None:
    await share(hall)
    before = {member.id: member.assigned for member in group(hall).members.values()}
    await hall.again()
    found = group(hall)
    assert found.state is ConsumerState.STABLE
    assert (found.epoch, found.assignment_epoch, found.assignor) == (3, 3, "uniform")
    assert {member.id: member.assigned for member in found.members.values()} == before
    assert await beat(hall, "a", 3) == Beaten("a", 3), "nothing changed for it"
    assert found.epoch == 3


async def test_also_in_the_middle_of_a_reconciliation(hall: Hall, topic: Topic) -> None:
    first = await beat(hall, "a")
    await beat(hall, "b")
    told = await beat(hall, "a", 2, owned=first.assigned)
    await hall.again()
    assert group(hall).state is ConsumerState.RECONCILING
    assert (await beat(hall, "b", 3)).assigned is None, "a has not given up its part"
    await beat(hall, "a", 2, owned=told.assigned)
    assert len((await beat(hall, "b", 3)).assigned or ()) == 2


async def test_who_left_is_not_kept(hall: Hall, topic: Topic) -> None:
    await share(hall)
    assert len(list(hall.engine.states(StateSpace.GROUP))) == 3
    await beat(hall, "a", LEAVE)
    assert len(list(hall.engine.states(StateSpace.GROUP))) == 2
    await hall.again()
    assert list(group(hall).members) == ["b"]


async def test_a_static_member_under_another_id(hall: Hall, topic: Topic) -> None:
    await beat(hall, "a", instance_id="x")
    await beat(hall, "a", LEAVE_FOR_A_WHILE, instance_id="x")
    assert len((await beat(hall, "b", instance_id="x")).assigned or ()) == 4
    await hall.again()
    assert list(group(hall).members) == ["b"]


async def test_the_timer_finds_the_dead(open_hall: OpenHall) -> None:
    hall = open_hall(consumer_session_timeout_ms=100)
    await hall.engine.create_topic("orders", 4, {})
    await beat(hall, "a")
    for _ in range(500):
        await asyncio.sleep(0.02)
        if not group(hall).members:
            break
    with pytest.raises(MemberUnknown):
        await beat(hall, "a", 1)
    await hall.again()
    assert group(hall).state is ConsumerState.EMPTY


async def test_what_cannot_be_kept_is_told_and_kept_later(hall: Hall, topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    await beat(hall, "a")

    async def refuse(*_: Any, **__: Any) -> None:
        raise Overloaded("the queue", 1, 100)

    with monkeypatch.context() as patched:
        patched.setattr(hall.engine, "append", refuse)
        with pytest.raises(Overloaded):
            await beat(hall, "b")
    assert (await beat(hall, "b")).epoch == 3
    await hall.again()
    assert sorted(group(hall).members) == ["a", "b"]


async def test_an_empty_group_becomes_the_other_kind(hall: Hall, topic: Topic) -> None:
    (joined,) = await hall.settle("g", 1)
    with pytest.raises(GroupUnknown, match="stop them first"):
        await beat(hall, "a")
    await hall.groups.commit(
        "g", joined.member_id, None, joined.generation, [GroupOffset(topic.topic_id, 0, 5), GroupOffset(topic.topic_id, 1, 6)]
    )
    hall.groups.leave("g", [(joined.member_id, None)])
    beaten = await beat(hall, "a")
    assert beaten.epoch > joined.generation
    await hall.again()
    assert len(hall.groups.offsets.all("g")) == 2
    assert len(list(hall.engine.states(StateSpace.GROUP))) == 2, "nothing of the older kind is left"
    with pytest.raises(ProtocolInconsistent):
        await hall.join("g")
    await beat(hall, "a", LEAVE)
    await hall.settle("g", 1)
    await hall.again()
    found = hall.groups.find("g")
    assert found is not None
    assert found.kind == "classic"


async def test_strangers_and_bounds(open_hall: OpenHall) -> None:
    hall = open_hall(groups_max=1, members_max=1, member_bytes_max=1_024)
    await hall.engine.create_topic("orders", 4, {})
    for name in ("", "n" * 256):
        with pytest.raises(GroupIdInvalid):
            await beat(hall, "a", group=name)
    for said in ({"topics": ("t" * 200,) * 6}, {"instance_id": "i" * 256}, {"rack_id": "r" * 256}):
        with pytest.raises(GroupFull):
            await beat(hall, "a", **said)
    with pytest.raises(GroupUnknown):
        await beat(hall, "a", 3)
    await beat(hall, "a")
    with pytest.raises(GroupFull, match="members_max"):
        await beat(hall, "b")
    with pytest.raises(GroupFull, match="groups_max"):
        await beat(hall, "a", group="h")
    assert hall.groups.names() == ["g"]


async def test_offsets_of_what_members_read_are_kept(hall: Hall, topic: Topic) -> None:
    others = await hall.engine.create_topic("others", 1, {})
    beaten = await beat(hall, "a")
    offsets = [GroupOffset(topic.topic_id, 0, 5), GroupOffset(others.topic_id, 0, 6)]
    await hall.groups.commit("g", "a", None, beaten.epoch, offsets)
    hall.clock.by_ms += 7 * 86_400_000 + 1_000
    assert await hall.groups.expire() == 1
    assert [one.topic_id for one in hall.groups.offsets.all("g")] == [topic.topic_id]
