"""A subscription as its connection sees it, whichever way it reads: the log as it is, or what a consumer is due."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from broker.delivery.position import Cursor, Position
from gateway.endpoints.websocket_frames import Frames
from gateway.endpoints.websocket_output import Output
from security.principal import Session

if TYPE_CHECKING:
    from gateway.endpoints.websocket_hub import Hub

OnFailure: TypeAlias = Callable[["Subscription", Exception], None]


@dataclass(frozen=True, slots=True)
class Opening:
    """What any subscription is opened with: the parts of its connection, and what its operation says.

    `turn` is held by the one subscription of the connection that reads. `ref` is the operation's mark; `sub` the subscription's
    name as `frames` encodes it; `credit` the records it may be sent, None for no bound.
    """

    hub: Hub
    session: Session
    output: Output
    frames: Frames
    turn: asyncio.Lock
    on_failure: OnFailure
    ref: bytes
    sub: bytes
    credit: int | None


class Subscription(ABC):
    """`credit` is what is left of it."""

    operation: ClassVar[str]
    __slots__ = (
        "_hub",
        "_on_failure",
        "_paused",
        "_ref",
        "_task",
        "_turn",
        "credit",
        "frames",
        "output",
        "session",
        "sub",
    )

    def __init__(self, opening: Opening) -> None:
        self.session, self.output, self.frames = opening.session, opening.output, opening.frames
        self.sub, self.credit = opening.sub, opening.credit
        self._hub, self._turn, self._on_failure, self._ref = opening.hub, opening.turn, opening.on_failure, opening.ref
        self._paused = False
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    def start(self, position: Position) -> None: ...

    @abstractmethod
    def renew(self, session: Session) -> None:
        """The connection has authenticated again: everything is asked again, with the new session."""

    @abstractmethod
    def add_credit(self, records: int) -> None: ...

    @abstractmethod
    def pause(self) -> None:
        """Nothing is sent until `resume`."""

    @abstractmethod
    def resume(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def position(self) -> Cursor | None:
        """Where it goes on; None before it has begun."""

    def take_ref(self) -> bytes:
        """The mark of the operation that made it, once: it belongs to the first answer only."""
        ref, self._ref = self._ref, b""
        return ref
