"""Who reads which partition, decided here and not by a member (KIP-848's server-side assignors).

uniform   as many partitions for each as for any other, and what somebody has stays with them as far as that allows
range     of each topic neighbouring partitions; members with the same topics have the same numbers of each, so topics with equal
          keys are read by one member. Static members come first, so that one that comes back under another id has the same
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import TypeAlias

from broker.engine.base import Topic

Place: TypeAlias = tuple[bytes, int]
"""A partition: topic id and number."""
Places: TypeAlias = frozenset[Place]
Wanted: TypeAlias = Mapping[str, Collection[Topic]]
"""The topics of each member, by its id, in the order in which ranges are laid."""
Assignor: TypeAlias = Callable[[Wanted, Mapping[str, Places]], dict[str, Places]]


def uniform(wanted: Wanted, held: Mapping[str, Places]) -> dict[str, Places]:
    """`held` is what each member has now, or was meant to have."""
    topics = {topic.topic_id: topic for found in wanted.values() for topic in found}
    readers: dict[bytes, list[str]] = {topic_id: [] for topic_id in topics}
    for member in sorted(wanted):
        for topic in wanted[member]:
            readers[topic.topic_id].append(member)
    has: dict[str, set[Place]] = {member: set() for member in sorted(wanted)}
    taken = _keep(topics, readers, held, has)
    for topic in topics.values():
        loads = [(len(has[member]), member) for member in readers[topic.topic_id]]
        heapify(loads)
        for partition in range(topic.partitions):
            if (place := (topic.topic_id, partition)) not in taken:
                load, member = loads[0]
                has[member].add(place)
                heapreplace(loads, (load + 1, member))
    _even_out(readers, has)
    return {member: frozenset(places) for member, places in has.items()}


def _keep(
    topics: Mapping[bytes, Topic], readers: Mapping[bytes, list[str]], held: Mapping[str, Places], has: dict[str, set[Place]]
) -> set[Place]:
    """Everybody keeps what they may still read, as far as nobody else was given it."""
    taken: set[Place] = set()
    may = {topic_id: set(members) for topic_id, members in readers.items()}
    for member in has:
        for topic_id, partition in held.get(member, ()):
            place = (topic_id, partition)
            if place not in taken and member in may.get(topic_id, ()) and partition < topics[topic_id].partitions:
                has[member].add(place)
                taken.add(place)
    return taken


def _even_out(readers: Mapping[bytes, list[str]], has: dict[str, set[Place]]) -> None:
    """Who has most gives one away to who has at least two fewer, until there is nobody such. Each gift makes the loads more even,
    so it ends."""
    given = True
    while given:
        given = False
        most = [(-len(places), member) for member, places in has.items()]
        heapify(most)
        while most:
            _, member = heappop(most)
            if _give_one(member, readers, has):
                given = True
                heappush(most, (-len(has[member]), member))


def _give_one(member: str, readers: Mapping[bytes, list[str]], has: dict[str, set[Place]]) -> bool:
    for place in sorted(has[member], reverse=True):
        members = readers[place[0]]
        least = min(members, key=lambda one: len(has[one]))
        if len(has[least]) + 1 < len(has[member]):
            has[member].remove(place)
            has[least].add(place)
            return True
        if len(members) == len(has):
            return False  # all may read it, and nobody has much less
    return False


def range_by_topic(wanted: Wanted, held: Mapping[str, Places]) -> dict[str, Places]:
    """`held` plays no part: ranges follow from the members and partitions alone."""
    has: dict[str, set[Place]] = {member: set() for member in wanted}
    topics = {topic.topic_id: topic for found in wanted.values() for topic in found}
    for topic in topics.values():
        members = [member for member in wanted if topic in wanted[member]]
        each, more = divmod(topic.partitions, len(members))
        first = 0
        for index, member in enumerate(members):
            count = each + (index < more)
            has[member] |= {(topic.topic_id, partition) for partition in range(first, first + count)}
            first += count
    return {member: frozenset(places) for member, places in has.items()}


ASSIGNORS: dict[str, Assignor] = {"uniform": uniform, "range": range_by_topic}
DEFAULT = "uniform"
