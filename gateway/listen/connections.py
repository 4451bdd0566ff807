"""The open connections of a listener."""

from __future__ import annotations

import asyncio
from typing import Any


class Connections(set[Any]):
    """A set that tells when it is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = asyncio.Event()
        self.empty.set()

    def add(self, connection: Any) -> None:
        super().add(connection)
        self.empty.clear()

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self._tell()

    def remove(self, connection: Any) -> None:
        super().remove(connection)
        self._tell()

    def _tell(self) -> None:
        if not self:
            self.empty.set()
