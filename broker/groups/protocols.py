"""Which protocol the members of a classic group use: each of them offers some, with metadata, in the order of its preference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from broker.groups.classic_member import Member


def common(members: Collection[Member]) -> set[str]:
    """Those that all of them know."""
    each = [{name for name, _ in member.protocols} for member in members]
    return set.intersection(*each) if each else set()


def chosen(members: Collection[Member], leader: Member) -> str:
    """Each votes for the first of its protocols that all know; the leader's order decides between equals."""
    known = common(members)
    votes = Counter(next(name for name, _ in member.protocols if name in known) for member in members)
    most = max(votes.values())
    return next(name for name, _ in (*leader.protocols, *((name, b"") for name in sorted(votes))) if votes[name] == most)
