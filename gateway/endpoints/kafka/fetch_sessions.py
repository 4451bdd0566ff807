"""Fetch sessions (KIP-227): the node remembers which partitions a consumer follows and from where, so that a request names what
has changed only, and an answer what there is to say.

A session belongs to the connection that made it and to who was authenticated there: its id means nothing to anybody else, and it
ends with the connection. A connection has one; to make another ends the first. Rights are no part of it: they are looked at in
every request, as without one. Where there is no room a client is told no id, and goes on naming everything.

Which session makes room is decided as Apache Kafka 4.3 does (FetchSessionCache): one that was not used for two minutes, else one
that is older than that and has fewer partitions than the new one.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from gateway.fetching import FetchWanted
from gateway.wire.kafka.error_codes import ErrorCode
from gateway.wire.kafka.fetch import FetchRequest
from gateway.wire.kafka.produce import TopicRef

NO_SESSION, FIRST_EPOCH, FINAL_EPOCH = 0, 0, -1
EPOCH_MAX = SESSION_ID_MAX = 2**31 - 1
EVICTION_MS = 120_000
"""Kafka's min.incremental.fetch.session.eviction.ms."""


class Followed(FetchWanted):
    """A partition of a request or a session. `told_*`: what the client knows of it, -1 where it has to be told anyway."""

    ref: TopicRef = ""
    told_end: int = -1
    told_start: int = -1

    def news(self, error: int, end: int, start: int, has_batches: bool) -> bool:
        """Whether the client has to be told, and from then on knows. What was refused is told again when it is not any more."""
        news = has_batches or error != 0 or end != self.told_end or start != self.told_start
        self.told_end, self.told_start = (-1 if error else end), start
        return news


Followers = dict[tuple[TopicRef, int], Followed]


class FetchSession:
    """`partitions` in the order in which they are looked at: those that had something come last the next time."""

    __slots__ = ("busy", "by_id", "created_ms", "epoch", "id", "partitions", "principal", "used_ms")

    def __init__(self, id: int, principal: str, by_id: bool, partitions: Followers, now_ms: int) -> None:
        self.id, self.principal, self.by_id, self.partitions = id, principal, by_id, partitions
        self.epoch = next_epoch(FIRST_EPOCH)
        self.created_ms = self.used_ms = now_ms
        self.busy = False

    def served(self, partitions: Iterable[Followed]) -> None:
        """What had something to give goes to the end, so that the first ones do not always fill the answer."""
        for one in partitions:
            place = (one.ref, one.partition)
            if self.partitions.get(place) is one:
                del self.partitions[place]
                self.partitions[place] = one


class SessionCounts(msgspec.Struct, frozen=True):
    """For the metrics."""

    open: int
    partitions: int
    evictions: int


class SessionRefused(Exception):
    """`code`: what the client is told; it begins anew."""

    def __init__(self, code: ErrorCode) -> None:
        self.code = code
        super().__init__(code.name)


class FetchSessions:
    """Those of all connections, the least recently used first; `owner` is the connection. Owner thread."""

    def __init__(self, sessions_max: int, partitions_max: int, now_ms: Callable[[], int]) -> None:
        self._sessions_max, self._partitions_max, self._now_ms = sessions_max, partitions_max, now_ms
        self._of: OrderedDict[Any, FetchSession] = OrderedDict()
        self._partitions = 0
        self._evictions = 0

    def counts(self) -> SessionCounts:
        return SessionCounts(len(self._of), self._partitions, self._evictions)

    def make(self, owner: Any, principal: str, by_id: bool, partitions: Followers) -> FetchSession | None:
        """One in place of what the owner has; None where there is no room."""
        self.forget(owner)
        if self._sessions_max == 0 or self._partitions + len(partitions) > self._partitions_max:
            return None
        now_ms = self._now_ms()
        if len(self._of) >= self._sessions_max and not self._make_room(len(partitions), now_ms):
            return None
        session = FetchSession(1 + secrets.randbelow(SESSION_ID_MAX), principal, by_id, partitions, now_ms)
        self._of[owner] = session
        self._partitions += len(partitions)
        return session

    def _make_room(self, partitions: int, now_ms: int) -> bool:
        owner, oldest = next(iter(self._of.items()))
        if now_ms - oldest.used_ms <= EVICTION_MS:
            settled = [(len(one.partitions), at) for at, one in self._of.items() if now_ms - one.created_ms > EVICTION_MS]
            smallest = min(settled, key=lambda found: found[0], default=None)
            if smallest is None or smallest[0] >= partitions:
                return False
            owner = smallest[1]
        self.forget(owner)
        self._evictions += 1
        return True

    def find(self, owner: Any, principal: str, by_id: bool, id: int, epoch: int) -> FetchSession:
        """For its next request. SessionRefused."""
        session = self._of.get(owner)
        if session is None or session.id != id or session.principal != principal:
            raise SessionRefused(ErrorCode.FETCH_SESSION_ID_NOT_FOUND)
        if session.epoch != epoch or session.busy:
            raise SessionRefused(ErrorCode.INVALID_FETCH_SESSION_EPOCH)
        if session.by_id != by_id:
            raise SessionRefused(ErrorCode.FETCH_SESSION_TOPIC_ID_ERROR)
        return session

    def change(
        self, owner: Any, session: FetchSession, named: Followers, forgotten: Iterable[tuple[TopicRef, Sequence[int]]]
    ) -> bool:
        """What a request changes of its session: those that are named are added or begin elsewhere, in Kafka's order. Whether the
        session goes on: one that follows nothing any more ends. SessionRefused, and its end, where it would follow too many."""
        before = len(session.partitions)
        for place, one in named.items():
            known = session.partitions.get(place)
            if known is None:
                session.partitions[place] = one
            else:
                known.offset, known.bytes_max, known.problem = one.offset, one.bytes_max, one.problem
        for ref, partitions in forgotten:
            for partition in partitions:
                session.partitions.pop((ref, partition), None)
        self._partitions += len(session.partitions) - before
        if not session.partitions or self._partitions > self._partitions_max:
            self.forget(owner)
            if session.partitions:
                raise SessionRefused(ErrorCode.FETCH_SESSION_ID_NOT_FOUND)
            return False
        session.epoch, session.used_ms = next_epoch(session.epoch), self._now_ms()
        self._of.move_to_end(owner)
        return True

    def close(self, owner: Any, id: int) -> None:
        """The client wants it no longer."""
        session = self._of.get(owner)
        if session is not None and session.id == id:
            self.forget(owner)

    def forget(self, owner: Any) -> None:
        """The owner has none any more: another takes its place, or the connection has ended."""
        session = self._of.pop(owner, None)
        if session is not None:
            self._partitions -= len(session.partitions)


def next_epoch(epoch: int) -> int:
    return 1 if epoch >= EPOCH_MAX else epoch + 1


def incremental(request: FetchRequest) -> bool:
    return request.session_epoch not in (FIRST_EPOCH, FINAL_EPOCH)
