"""The publishes, and settlements of consumers, of one connection that the log has not yet acknowledged.

Order is kept twice. Appends: operations reach the engine in the order they came, since `Pipeline.publish` does not suspend before
it has handed its batches over. Only making a topic suspends it, so such an operation goes alone: `full` until it is done.
Answers: they go out in the order of the operations, whichever commit finished first.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from broker.delivery.consumer import Settled
from gateway.pipeline import Pipeline, Publication, Receipt
from security.principal import Session

Outcome = Sequence[Receipt] | Settled | BaseException
Answer = Callable[["UnderWay"], None]


@dataclass(slots=True, eq=False)
class UnderWay:
    """An operation that is not answered yet. `ref` is encoded and echoed in the answer; `size` counts against the bound in bytes.

    `began_s` is on the clock `time.perf_counter`; `sub` is the consumer's, encoded.
    """

    ref: bytes
    size: int
    began_s: float
    operation: str = "publish"
    sub: bytes = b""
    outcome: Outcome | None = None


class Publisher:
    """`answer` is called once for each operation, in their order; `on_room` when `full` has ended."""

    def __init__(
        self, pipeline: Pipeline, *, operations_max: int, bytes_max: int, answer: Answer, on_room: Callable[[], None]
    ) -> None:
        self.full = False
        self._pipeline = pipeline
        self._operations_max, self._bytes_max = operations_max, bytes_max
        self._answer, self._on_room = answer, on_room
        self._under_way: deque[UnderWay] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._alone: UnderWay | None = None
        self._settled: asyncio.Future[None] | None = None

    def publish(self, session: Session, topic: str, records: Publication, *, durable: bool, ref: bytes, size: int) -> None:
        """The caller has looked at `full`."""
        assert not self.full
        operation = self._add(UnderWay(ref, size, time.perf_counter()))
        if topic not in self._pipeline.broker.topics():
            self._alone = operation
            self._look()
        self._start(operation, self._pipeline.publish(session, topic, records, durable=durable))

    def settle(self, operation: str, sub: bytes, work: Awaitable[Settled], *, ref: bytes, size: int) -> None:
        """A consumer's acknowledgement, whose tags have `size` characters; answered when `work` says that it is durable."""
        self._start(self._add(UnderWay(ref, size, time.perf_counter(), operation, sub)), work)

    def refuse(self, ref: bytes, error: Exception, operation: str = "publish", sub: bytes = b"") -> None:
        """An operation that comes to nothing is answered in its turn."""
        self._add(UnderWay(ref, 0, time.perf_counter(), operation, sub, error))
        self._answer_done()

    async def settled(self) -> None:
        """Wait until every operation has been answered."""
        if self._under_way:
            self._settled = self._settled or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._settled)

    def _start(self, operation: UnderWay, work: Awaitable[Sequence[Receipt] | Settled]) -> None:
        task = asyncio.create_task(self._run(operation, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, operation: UnderWay, work: Awaitable[Sequence[Receipt] | Settled]) -> None:
        try:
            operation.outcome = await work
        except BaseException as error:
            operation.outcome = error
            if not isinstance(error, Exception):
                raise  # the loop is being torn down
        finally:
            if operation is self._alone:
                self._alone = None
            self._answer_done()

    def _add(self, operation: UnderWay) -> UnderWay:
        self._under_way.append(operation)
        self._bytes += operation.size
        self._look()
        return operation

    def _answer_done(self) -> None:
        while self._under_way and self._under_way[0].outcome is not None:
            operation = self._under_way.popleft()
            self._bytes -= operation.size
            self._answer(operation)
        if not self._under_way and self._settled is not None:
            self._settled.set_result(None)
            self._settled = None
        if self.full:
            self._look()
            if not self.full:
                self._on_room()

    def _look(self) -> None:
        self.full = self._alone is not None or len(self._under_way) >= self._operations_max or self._bytes >= self._bytes_max
