"""A row of the table of operations, and what its handler may answer beside a dictionary."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from gateway.endpoints.kafka.call import Call


class Reply(msgspec.Struct, gc=False):
    """A response that is bytes already, without its header, in pieces that are written from where they are."""

    parts: Sequence[bytes | bytearray | memoryview]


Answer: TypeAlias = Mapping[str, Any] | Reply | None
"""A dictionary in the names of the schema, or bytes; None where the client wants no answer (Produce with acks 0)."""

Handler: TypeAlias = Callable[[Call, Any], Awaitable[Answer]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """`low` and `high` are the versions that are advertised, `served_from` the lowest that is really served, where it is above
    `low`. `open` ones need nobody to be authenticated.

    The handler of a `raw` one takes the request undecoded, as a memoryview that is its own. Several raw ones, and those that may
    `overlap`, are under way on one connection at once, begun in their order; all others have the connection to themselves, as in
    Kafka. For one that `waits`, the client decides how long: it is not timed, and cancelled when the node stops.
    """

    api: int
    name: str
    low: int
    high: int
    handle: Handler
    open: bool = False
    raw: bool = False
    overlaps: bool = False
    waits: bool = False
    served_from: int = 0

    def serves(self, version: int) -> bool:
        return max(self.low, self.served_from) <= version <= self.high
