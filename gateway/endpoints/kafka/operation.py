"""A row of the table of operations, and what its handler may answer.

A handler is a coroutine function and answers with a dictionary in the names of the schema, or with bytes. That of a `raw`
operation is a plain function, called in the turn in which its request is the next one. It has three ways to answer:

    Reply, None     it is there: no task is made, and it leaves in the same turn
    Later           it comes by itself: whoever keeps it settles it, once, out of a callback
    a coroutine     it has to wait for several things: run as a task, which ends with its connection
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from gateway.endpoints.kafka.call import Call


class Reply(msgspec.Struct, gc=False):
    """A response that is bytes already, without its header, in pieces that are written from where they are."""

    parts: Sequence[bytes | bytearray | memoryview]


Answer: TypeAlias = Mapping[str, Any] | Reply | None
"""A dictionary in the names of the schema, or bytes; None where the client wants no answer (Produce with acks 0)."""


class Later(msgspec.Struct, eq=False):
    """An answer on its way without a task of its own. `settle` or `fail` is called once, on the loop's thread, after the handler
    has returned; nobody hears it where the connection has ended meanwhile. It may be awaited instead."""

    then: Callable[[Answer, Exception | None], None] | None = None

    def settle(self, answer: Answer) -> None:
        if (then := self.then) is not None:
            then(answer, None)

    def fail(self, error: Exception) -> None:
        if (then := self.then) is not None:
            then(None, error)

    def __await__(self) -> Generator[Any, None, Answer]:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def then(answer: Answer, error: Exception | None) -> None:
            if future.done():  # whoever awaited was cancelled
                return
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)

        self.then = then
        return future.__await__()


Handler: TypeAlias = Callable[[Call, Any], Awaitable[Answer]]
RawHandler: TypeAlias = Callable[[Call, memoryview], Answer | Later | Coroutine[Any, Any, Answer]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """`low` and `high` are the versions that are advertised, `served_from` the lowest that is really served, where it is above
    `low`. `open` ones need nobody to be authenticated.

    The handler of a `raw` one takes the request undecoded, as a memoryview that is its own. Several raw ones, and those that may
    `overlap`, are under way on one connection at once, begun in their order; all others have the connection to themselves, as in
    Kafka. For one that `waits`, the client decides how long: it is not timed, cancelled when the node stops, and only one of them
    is under way on a connection, as its answer may be large.
    """

    api: int
    name: str
    low: int
    high: int
    handle: Handler | RawHandler
    open: bool = False
    raw: bool = False
    overlaps: bool = False
    waits: bool = False
    served_from: int = 0

    def serves(self, version: int) -> bool:
        return max(self.low, self.served_from) <= version <= self.high
