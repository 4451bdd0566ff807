"""An open-loop load: requests are due at fixed times, whatever the node does with the ones before.

Latency counts from when a request was *due*, not from when a free connection could send it: a node that stalls for a second shows
as a second in every request that was due meanwhile (Gil Tene's "coordinated omission").
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from gateway.cli.connection import Connection
from gateway.cli.failures import Unreachable
from gateway.cli.latencies import Latencies
from gateway.cli.load_targets import CONNECT_TIMEOUT_S, Answer, Target, open_websocket

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

# The record's own text begins with the time it was due, so that a subscriber knows how long it took.
_STAMP_CHARS = 20
# Requests that wait for a free connection; what is due beyond it counts as never sent.
DUE_MAX = 1_000_000


class Plan(msgspec.Struct, frozen=True):
    """`rate` is requests a second over all connections; `size` is bytes of a record's value."""

    protocol: str
    rate: float
    seconds: float
    records: int
    size: int
    keys: int
    connections: int
    subscribers: int


class Outcome:
    """What was measured. `behind` counts requests that were due and never sent, as no connection was free until the end."""

    def __init__(self) -> None:
        self.acknowledged = Latencies()
        self.delivered = Latencies()
        self.records = 0
        self.refused: Counter[str] = Counter()
        self.behind = 0
        self.took_s = 0.0


class Load:
    """One run. `target` makes a connection; `progress` is told once a second."""

    def __init__(
        self,
        plan: Plan,
        connection: Connection,
        topic: str,
        target: Callable[[], Target],
        progress: Callable[[float, Outcome], None],
    ) -> None:
        self._plan, self._connection, self._topic = plan, connection, topic
        self._target, self._progress = target, progress
        self._padding = "x" * max(0, plan.size - _STAMP_CHARS)
        self._sent = 0
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        subscribers = [await self._subscribe() for _ in range(self._plan.subscribers)]
        targets = [self._target() for _ in range(self._plan.connections)]
        await asyncio.gather(*(target.open() for target in targets))
        began = time.monotonic()
        due: asyncio.Queue[float | None] = asyncio.Queue(DUE_MAX + self._plan.connections)
        publishers = [asyncio.create_task(self._publish(target, due)) for target in targets]
        telling = asyncio.create_task(self._tell(began))
        await self._schedule(due, began)
        self.outcome.behind += _emptied(due)
        for _ in publishers:
            due.put_nowait(None)
        await asyncio.gather(*publishers)
        self.outcome.took_s = time.monotonic() - began
        await self._delivered_all(subscribers)
        telling.cancel()
        await asyncio.gather(telling, *(target.close() for target in targets), return_exceptions=True)
        return self.outcome

    async def _schedule(self, due: asyncio.Queue[float | None], began: float) -> None:
        """All that became due since the last look is put in at once: a late timer delays nothing that is measured."""
        total = round(self._plan.rate * self._plan.seconds)
        put = 0
        while put < total:
            reached = min(total, int((time.monotonic() - began) * self._plan.rate) + 1)
            for number in range(put, reached):
                if due.qsize() < DUE_MAX:
                    due.put_nowait(began + number / self._plan.rate)
                else:
                    self.outcome.behind += 1
            put = max(put, reached)
            await asyncio.sleep(min(0.005, 1 / self._plan.rate))

    async def _publish(self, target: Target, due: asyncio.Queue[float | None]) -> None:
        while (at := await due.get()) is not None:
            try:
                await target.send(self._records(at))
            except Answer as refusal:
                self.outcome.refused[refusal.reason] += 1
            except (OSError, TimeoutError) as error:
                self.outcome.refused[type(error).__name__] += 1
                await target.close()
                await target.open()
            else:
                self.outcome.acknowledged.add(time.monotonic() - at)
                self.outcome.records += self._plan.records

    def _records(self, at: float) -> list[dict[str, str]]:
        text = f"{at:<{_STAMP_CHARS}.6f}{self._padding}"
        first, self._sent = self._sent, self._sent + self._plan.records
        return [{"key": f"key-{number % self._plan.keys}", "text": text} for number in range(first, self._sent)]

    async def _subscribe(self) -> asyncio.Task[None]:
        from websockets.exceptions import ConnectionClosed

        socket = await open_websocket(self._connection)
        try:
            await socket.send(json.dumps({"op": "subscribe", "sub": "load", "topic": self._topic, "from": "latest"}))
            await asyncio.wait_for(socket.recv(), CONNECT_TIMEOUT_S)
        except (ConnectionClosed, TimeoutError) as error:
            raise Unreachable(f"no subscription from {self._connection.url}", str(error)) from None
        return asyncio.create_task(self._count(socket), name="load subscriber")

    async def _count(self, socket: ClientConnection) -> None:
        try:
            async for frame in socket:
                now = time.monotonic()
                messages = json.loads(frame)
                for message in messages if isinstance(messages, list) else [messages]:
                    for record in message.get("records", ()):
                        self.outcome.delivered.add(now - float(record["text"][:_STAMP_CHARS]))
        finally:
            await socket.close()

    async def _delivered_all(self, subscribers: list[asyncio.Task[None]]) -> None:
        """Until everything acknowledged has arrived everywhere, or nothing more comes for a second."""
        wanted = self.outcome.records * len(subscribers)
        before = -1
        while subscribers and before < self.outcome.delivered.count < wanted:
            before = self.outcome.delivered.count
            await asyncio.sleep(1)
        for subscriber in subscribers:
            subscriber.cancel()
        await asyncio.gather(*subscribers, return_exceptions=True)

    async def _tell(self, began: float) -> None:
        while True:
            await asyncio.sleep(1)
            self._progress(time.monotonic() - began, self.outcome)


def _emptied(due: asyncio.Queue[float | None]) -> int:
    count = 0
    while not due.empty():
        due.get_nowait()
        count += 1
    return count
