"""Where the owner thread reads sealed bytes to that the system has in memory: one buffer, used again and again."""

from __future__ import annotations

from broker.log.files import LogFile

SCRATCH_BYTES = 1024 * 1024 + 64 * 1024  # 1 MiB of batches, as Kafka's consumers ask for, with what lies between them


class Scratch:
    """Made at the first use: a node whose readers keep up needs none. Owner thread."""

    __slots__ = ("_view",)

    def __init__(self) -> None:
        self._view: memoryview | None = None

    def read(self, file: LogFile, position: int, size: int) -> memoryview | None:
        """The bytes, good until the next call; None where the disk would have to be asked for them."""
        if self._view is None:
            self._view = memoryview(bytearray(SCRATCH_BYTES))
        view = self._view[:size]
        file.hold()  # a lane closes what nobody holds
        try:
            return view if file.file.read_now(position, view) == size else None
        finally:
            file.release()
