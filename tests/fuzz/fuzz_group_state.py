"""Fuzz target: groups as they are kept in the log: what comes back can be kept again, the rest is refused by name."""

from __future__ import annotations

from broker.errors import FormatUnsupported, StorageDamaged
from broker.groups import classic_keeping, consumer_keeping, keeping
from broker.groups.classic import ClassicGroup, ClassicState
from broker.groups.classic_member import Member
from broker.groups.consumer import ConsumerGroup
from broker.groups.consumer_member import ConsumerMember
from broker.groups.group_options import GroupOptions
from broker.groups.keeping import Kept
from broker.groups.offsets import group_digest
from tests.fuzz.refusals import check_refusal

OPTIONS, NOW_MS = GroupOptions(), 1_760_000_000_000
NAME = "readers"
DIGEST = group_digest(NAME)
SEPARATOR = b"\xff\x00split\x00\xff"


def _classic() -> list[bytes]:
    group = ClassicGroup(NAME, OPTIONS)
    group.state, group.generation, group.protocol, group.leader = ClassicState.STABLE, 3, "range", "a"
    group.members["a"] = Member("a", "i", "client", "/127.0.0.1", 10_000, 60_000, (("range", b"said"),), b"part")
    return list(classic_keeping.entries(group, NOW_MS).values())


def _consumer() -> list[bytes]:
    group = ConsumerGroup(NAME, OPTIONS, 5)
    places = frozenset([(bytes(16), 1), (bytes(16), 2)])
    group.members["a"] = ConsumerMember("a", None, topics=("orders",), epoch=5, assigned=places, target=places)
    return list(consumer_keeping.entries(group, ["a"], NOW_MS).values())


CORPUS = [SEPARATOR.join(_classic()), SEPARATOR.join(_consumer()), _classic()[0], _consumer()[0]]


def one_input(data: bytes) -> None:
    head, *members = data.split(SEPARATOR)
    states = [
        (DIGEST, head),
        *[(DIGEST + bytes(14) + index.to_bytes(2, "big") + bytes(2), one) for index, one in enumerate(members)],
    ]
    (kept,) = keeping.load(states)
    try:
        if not isinstance(kept, Kept):
            raise kept
        if kept.head.kind == ConsumerGroup.kind:
            group = consumer_keeping.restore(kept, OPTIONS, 0)
            again = consumer_keeping.entries(group, group.members, NOW_MS)
        else:
            classic = classic_keeping.restore(kept, OPTIONS, 0)
            again = classic_keeping.entries(classic, NOW_MS)
    except (StorageDamaged, FormatUnsupported) as error:
        check_refusal(error)
        return
    (same,) = keeping.load(again.items())
    assert isinstance(same, Kept)
    assert sorted(same.members) == sorted(value for key, value in again.items() if len(key) > len(DIGEST))
