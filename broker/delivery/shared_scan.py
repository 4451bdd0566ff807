"""Catching up over many topics, together: one reader reads a range of the log for every session that waits for it.

A session (`SharedSource`) asks for what follows its position. What was read a moment ago is handed out again (a *chunk*: a range
of commit sequences as it was found there); else the session waits, and at most `readers_max` lanes read for all who wait:

    pick    who has waited longer than `waited_ms_max` is next; else the lane goes on where it stopped, if somebody waits there;
            else whoever has waited longest, and those who stand no more than a chunk before him are taken along.
    read    one `Engine.scan` of `read_bytes` from there, no faster than `bytes_per_s` over all lanes
    serve   everybody whose position lies in the range

So sessions that catch up side by side fall into step at the ends of chunks, and the log is read once for all of them. Chunks are
shared by sessions that want the very same topics, by their ids: rights differ, and a topic that was made again is another one.
A session is given exactly what a scan of its own would have found:

- nothing at or after what was visible when its topics were looked up: a topic made later begins there;
- nothing that was deleted, or that retention took, since the chunk was read;
- damage and gaps are told by ranges of offsets and not by place in the order, so a chunk that has some serves only those who
  stand at its beginning.

Memory is bounded by `kept_bytes`, and by what the sessions themselves hold: a slow one holds its last chunk and comes back later,
when another lane may have to read that range again for it.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from typing import TypeAlias, cast
from weakref import WeakValueDictionary

import msgspec

from broker.engine.base import Engine, Scan, Topic
from broker.seams import Clock

MIB = 1024 * 1024

# Whoever is so few commits behind is served from memory: that costs the disk nothing, and is not paced.
LIVE_COMMITS = 1_000

Topics: TypeAlias = Callable[[str], bool]
TopicIds: TypeAlias = frozenset[bytes]
Version: TypeAlias = Callable[[], object]
"""Equal answers promise equal answers of `Topics`."""


class SharedScanOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the readers that catch up for all sessions with wildcards."""

    readers_max: int = 2
    """Ranges of the log read at once, for all sessions together."""

    bytes_per_s: int = 128 * MIB
    """What they read in a second, all together; sessions at the live end are not held back."""

    read_bytes: int = 4 * MIB
    """One range, at most (a single larger batch is still read)."""

    waited_ms_max: int = 500
    """A session that has waited so long is served next, wherever in the log it stands."""

    kept_bytes: int = 16 * MIB
    """Ranges kept in memory for sessions that come a moment later."""

    kept_ms: int = 1_000
    """How long they are kept at most."""


class SharedScanStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since start: what was read from the log, and what was handed to sessions; and sizes now."""

    reads: int
    read_bytes: int
    served: int
    served_bytes: int
    waiting: int
    kept_bytes: int


class _Chunk:
    """What one scan found: all that the log has of these topics in [start, end)."""

    __slots__ = ("begins", "end", "read_at_ms", "scan", "sequences", "size", "start", "topic_ids")

    def __init__(self, topic_ids: TopicIds, start: int, scan: Scan, read_at_ms: int) -> None:
        self.topic_ids, self.start, self.scan, self.read_at_ms = topic_ids, start, scan, read_at_ms
        self.end = scan.next_sequence
        self.sequences = [stored.sequence for _, stored in scan.batches]
        self.size = sum(len(stored.batch) for _, stored in scan.batches)
        self.begins: dict[str, dict[int, int]] = {}  # topic -> partition -> its first offset here
        for topic, stored in scan.batches:
            self.begins.setdefault(topic, {}).setdefault(stored.partition, max(stored.base_offset, stored.first_offset))

    def whole(self, engine: Engine) -> bool:
        """Whether nothing of it was deleted since."""
        return all(
            offsets.log_start <= begins.get(offsets.partition, offsets.log_start)
            for topic, begins in self.begins.items()
            for offsets in engine.offsets(topic)
        )

    def serves(self, position: int) -> bool:
        if position == self.start:
            return True
        return self.start < position < self.end and not self.scan.damage and not self.scan.gap

    def slice(self, position: int, below: int, bytes_max: int) -> Scan:
        """From a position on, up to `bytes_max` (one batch at least); nothing from commit `below` on."""
        begin = bisect_left(self.sequences, position)
        end = bisect_left(self.sequences, below)
        size, batches = 0, self.scan.batches
        for at in range(begin, end):
            size += len(batches[at][1].batch)
            if size > bytes_max and at > begin:
                return Scan(batches[begin:at], self.sequences[at], self.scan.damage, self.scan.gap)
        return Scan(batches[begin:end], min(self.end, below), self.scan.damage, self.scan.gap)


class _Waiter:
    __slots__ = ("answer", "below", "bytes_max", "position", "since_ms", "topic_ids")

    def __init__(
        self, topic_ids: TopicIds, position: int, below: int, bytes_max: int, since_ms: int, answer: asyncio.Future[Scan]
    ) -> None:
        self.topic_ids, self.position, self.below, self.bytes_max = topic_ids, position, below, bytes_max
        self.since_ms, self.answer = since_ms, answer


class _Group(list[_Waiter]):
    """Who waits for the same topics, by position."""

    def add(self, waiter: _Waiter) -> None:
        insort(self, waiter, key=_position)

    def drop(self, waiter: _Waiter) -> None:
        del self[self.index(waiter, self.at(waiter.position))]

    def at(self, position: int) -> int:
        """Index of the first that stands there or after."""
        return bisect_left(self, position, key=_position)

    def next_position(self, position: int) -> int | None:
        at = self.at(position)
        return self[at].position if at < len(self) else None

    def take(self, chunk: _Chunk) -> list[_Waiter]:
        """Those whom the chunk serves leave the group."""
        begin = self.at(chunk.start)
        end = self.at(chunk.start + 1 if chunk.scan.damage or chunk.scan.gap else max(chunk.end, chunk.start + 1))
        taken = self[begin:end]
        del self[begin:end]
        return taken


def _position(waiter: _Waiter) -> int:
    return waiter.position


class SharedSource:
    """One session's source (`broker.delivery.source.Source`)."""

    def __init__(self, scans: SharedScans, engine: Engine, topics: Topics, version: Version | None) -> None:
        self._scans, self._engine, self._topics, self._version = scans, engine, topics, version
        self._ids: TopicIds = frozenset()
        self._known: object = None

    async def read(self, from_sequence: int, *, bytes_max: int, wait_max_ms: int) -> Scan:
        return await self._scans.read(self._wanted, self._topics, from_sequence, bytes_max, wait_max_ms)

    def _wanted(self) -> TopicIds:
        """The ids of the topics as they are now. Thousands of sessions ask at each commit: mostly nothing has changed."""
        topics = self._engine.topics()
        # Topics stand in the order in which they were made: with the same number and the same last one, they are the same.
        last = topics[next(reversed(cast("dict[str, Topic]", topics)))].topic_id if topics else b""
        known = None if self._version is None else (self._version(), len(topics), last)
        if known is None or known != self._known:
            ids = frozenset([topic.topic_id for topic in topics.values() if self._topics(topic.name)])
            self._ids, self._known = self._scans.same(ids), known
        return self._ids


class SharedScans:
    """All sessions of one engine. Owner thread."""

    def __init__(self, engine: Engine, clock: Clock, options: SharedScanOptions | None = None) -> None:
        self._engine, self._clock = engine, clock
        self.options = options or SharedScanOptions()
        self._waiters: dict[_Waiter, None] = {}  # in the order in which they came
        self._groups: dict[TopicIds, _Group] = {}
        self._sets: WeakValueDictionary[int, TopicIds] = WeakValueDictionary()
        self._chunks: deque[_Chunk] = deque()
        self._kept_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._lanes: dict[asyncio.Task[None], None] = {}
        self._reading: list[tuple[TopicIds, int]] = []
        self._reach = LIVE_COMMITS
        self._paced_until_ms = 0.0
        self._reads = self._read_bytes = self._served = self._served_bytes = 0

    def source(self, topics: Topics, version: Version | None = None) -> SharedSource:
        """For a session that wants these topics; asked at every read, or when `version` or the topics there are have changed."""
        return SharedSource(self, self._engine, topics, version)

    def same(self, ids: TopicIds) -> TopicIds:
        """One object for all who want the same: a set of a thousand topics is held once, and told from others by identity."""
        known = self._sets.get(hash(ids))
        if known is None or known != ids:
            known = self._sets[hash(ids)] = ids
        return known

    def stats(self) -> SharedScanStats:
        return SharedScanStats(
            reads=self._reads,
            read_bytes=self._read_bytes,
            served=self._served,
            served_bytes=self._served_bytes,
            waiting=len(self._waiters),
            kept_bytes=self._kept_bytes,
        )

    async def read(self, wanted: Callable[[], TopicIds], topics: Topics, position: int, bytes_max: int, wait_max_ms: int) -> Scan:
        """As `Engine.scan`, from memory or with the next lane that comes by."""
        deadline_ms = self._clock.monotonic_ms() + wait_max_ms
        while True:
            visible = self._engine.next_sequence()
            if position < visible:
                scan = await self._read_now(wanted(), position, visible, bytes_max)
                stepped, position = scan.next_sequence > position, scan.next_sequence
                if scan.batches or scan.damage or scan.gap:
                    return scan
                held_back = not stepped and self._engine.next_sequence() == visible  # by an open transaction
                if held_back and not await self._news(visible - 1, deadline_ms):
                    return scan
            elif not await self._news(position, deadline_ms):
                return await self._engine.scan(position, topics=topics, bytes_max=bytes_max)  # raises Closed when it is

    async def _read_now(self, ids: TopicIds, position: int, visible: int, bytes_max: int) -> Scan:
        """`visible` is of the moment of the ids: what is committed later may be of topics that are not among them."""
        if not ids:
            return Scan([], visible, [])
        self._forget_old()
        for chunk in self._chunks:
            if chunk.topic_ids is ids and chunk.serves(position) and chunk.whole(self._engine):
                return self._serve(chunk.slice(position, visible, bytes_max))
        answer: asyncio.Future[Scan] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(ids, position, visible, bytes_max, self._clock.monotonic_ms(), answer)
        self._waiters[waiter] = None
        self._groups.setdefault(ids, _Group()).add(waiter)
        self._start_lane()
        try:
            return await answer
        finally:
            if waiter in self._waiters:  # it goes away before it was served
                del self._waiters[waiter]
                self._groups[ids].drop(waiter)
                self._forget_group(ids)

    async def _news(self, position: int, deadline_ms: int) -> bool:
        """Wait until there is something after the position; False when the deadline comes first."""
        left_ms = deadline_ms - self._clock.monotonic_ms()
        if left_ms <= 0:
            return False
        happened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        unwatch = self._engine.watch_all(lambda: None if happened.done() else happened.set_result(None))
        try:
            async with asyncio.timeout(left_ms / 1_000):
                await happened
        except TimeoutError:
            return False
        finally:
            unwatch()
        return self._engine.next_sequence() > position  # else it was closed

    # Lanes

    def _start_lane(self) -> None:
        if len(self._lanes) < self.options.readers_max:
            lane = asyncio.get_running_loop().create_task(self._run(), name="shared scan")
            self._lanes[lane] = None

    async def _run(self) -> None:
        """It begins a turn of the loop after the first came: all who woke up with him are there."""
        lane = asyncio.current_task()
        assert lane is not None
        try:
            await self._read_for_all()
        finally:  # in the same turn in which it found nobody: whoever comes in the next one starts a new lane
            self._lanes.pop(lane, None)

    async def _read_for_all(self) -> None:
        """Until nobody waits."""
        last: _Chunk | None = None
        while (picked := self._pick(last)) is not None:
            topic_ids, start = picked
            self._reading.append(picked)
            try:
                await self._paced(start)
                if self._next_position(topic_ids, start) == start:  # else it went away
                    last = await self._scan(topic_ids, start)
                    self._serve_all(last)
            except Exception as error:
                last = None
                self._fail(topic_ids, start, error)
            finally:
                self._reading.remove(picked)

    def _pick(self, last: _Chunk | None) -> tuple[TopicIds, int] | None:
        """Topics, and where to begin."""
        oldest = next((waiter for waiter in self._waiters if not self._expected(waiter.topic_ids, waiter.position)), None)
        if oldest is None:
            return None
        if self._clock.monotonic_ms() - oldest.since_ms >= self.options.waited_ms_max:
            return oldest.topic_ids, oldest.position
        following = None if last is None else self._next_position(last.topic_ids, last.end)
        if last is not None and following is not None and not self._expected(last.topic_ids, following):
            return last.topic_ids, following
        nearly = self._next_position(oldest.topic_ids, oldest.position - self._reach)
        if nearly is None or self._expected(oldest.topic_ids, nearly):
            nearly = oldest.position
        return oldest.topic_ids, nearly

    def _expected(self, topic_ids: TopicIds, position: int) -> bool:
        """Whether a lane reads already what will most likely serve it; if not, the lane finds it waiting still."""
        return any(topic_ids is ids and start <= position <= start + self._reach for ids, start in self._reading)

    def _next_position(self, topic_ids: TopicIds, position: int) -> int | None:
        """Of those who wait for these topics, the first one there or after."""
        group = self._groups.get(topic_ids)
        return None if group is None else group.next_position(position)

    def _serve_all(self, chunk: _Chunk) -> None:
        for waiter in self._leave(chunk):
            if not waiter.answer.done():
                waiter.answer.set_result(self._serve(chunk.slice(waiter.position, waiter.below, waiter.bytes_max)))

    def _fail(self, topic_ids: TopicIds, start: int, error: Exception) -> None:
        """Those who stood there are told; all others are read for as before."""
        for waiter in self._leave(_Chunk(topic_ids, start, Scan([], start, []), 0)):
            if not waiter.answer.done():
                waiter.answer.set_exception(error)

    def _leave(self, chunk: _Chunk) -> list[_Waiter]:
        group = self._groups.get(chunk.topic_ids)
        served = [] if group is None else group.take(chunk)
        for waiter in served:
            del self._waiters[waiter]
        self._forget_group(chunk.topic_ids)
        return served

    def _forget_group(self, topic_ids: TopicIds) -> None:
        if not self._groups.get(topic_ids, True):
            del self._groups[topic_ids]

    async def _scan(self, topic_ids: TopicIds, start: int) -> _Chunk:
        topics = self._engine.topics()
        scan = await self._engine.scan(
            start,
            topics=lambda name: (topic := topics.get(name)) is not None and topic.topic_id in topic_ids,
            bytes_max=self.options.read_bytes,
        )
        chunk = _Chunk(topic_ids, start, scan, self._clock.monotonic_ms())
        self._reach = max(1, chunk.end - chunk.start)
        self._reads += 1
        self._read_bytes += chunk.size
        self._paced_until_ms += chunk.size * 1_000 / self.options.bytes_per_s
        if chunk.end > chunk.start:  # else a transaction holds it back, and may be ended in a moment
            self._keep(chunk)
        return chunk

    async def _paced(self, start: int) -> None:
        """Until what was read before is paid for; who is nearly live waits for nothing, and pays."""
        now_ms = self._clock.monotonic_ms()
        self._paced_until_ms = max(self._paced_until_ms, float(now_ms))
        if start < self._engine.next_sequence() - LIVE_COMMITS and self._paced_until_ms > now_ms:
            await asyncio.sleep((self._paced_until_ms - now_ms) / 1_000)

    def _serve(self, scan: Scan) -> Scan:
        self._served += 1
        self._served_bytes += sum([len(stored.batch) for _, stored in scan.batches])
        return scan

    # Chunks

    def _keep(self, chunk: _Chunk) -> None:
        self._chunks.append(chunk)
        self._kept_bytes += chunk.size
        self._forget_old()
        if self._chunks and self._timer is None:
            self._forget_later()

    def _forget_later(self) -> None:
        """What was deleted meanwhile shall not stay here in clear because nobody reads."""
        self._timer = asyncio.get_running_loop().call_later(self.options.kept_ms / 1_000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._forget_old()
        if self._chunks:
            self._forget_later()

    def _forget_old(self) -> None:
        oldest_ms = self._clock.monotonic_ms() - self.options.kept_ms
        while self._chunks and (self._kept_bytes > self.options.kept_bytes or self._chunks[0].read_at_ms <= oldest_ms):
            self._kept_bytes -= self._chunks.popleft().size
