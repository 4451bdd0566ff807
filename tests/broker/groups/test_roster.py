"""Members by id and by static instance id."""

from __future__ import annotations

import pytest

from broker.groups.consumer_member import ConsumerMember
from broker.groups.group_errors import InstanceFenced, MemberUnknown
from broker.groups.roster import Roster


@pytest.fixture
def roster() -> Roster[ConsumerMember]:
    roster: Roster[ConsumerMember] = Roster()
    roster.add(ConsumerMember("a"))
    roster.add(ConsumerMember("b", "x"))
    return roster


@pytest.mark.parametrize(
    ("member_id", "instance_id", "refusal"),
    [("c", None, MemberUnknown), ("", None, MemberUnknown), ("a", "y", MemberUnknown), ("a", "x", InstanceFenced)],
)
def test_strangers(roster: Roster[ConsumerMember], member_id: str, instance_id: str | None, refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        roster.known(member_id, instance_id)


def test_who_is_there(roster: Roster[ConsumerMember]) -> None:
    assert roster.known("a", None) is roster["a"]
    assert roster.known("b", "x") is roster.known("b", None) is roster.holder("x")
    assert roster.holder(None) is None


def test_a_member_under_a_new_id(roster: Roster[ConsumerMember]) -> None:
    member = roster["b"]
    roster.rename(member, "c")
    assert (list(roster), roster.holder("x"), member.id) == (["a", "c"], member, "c")
    with pytest.raises(InstanceFenced):
        roster.known("b", "x")


def test_one_that_goes(roster: Roster[ConsumerMember]) -> None:
    roster.remove(roster["b"])
    assert (list(roster), roster.holder("x")) == (["a"], None)
