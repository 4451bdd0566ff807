"""Space on the disk: kept back in a file, watched, and given back when the disk is full.

A log that fills its disk to the last byte cannot even delete: a deletion is itself appended, a manifest is written anew. So a
file of `reserve_bytes` holds blocks that are given back at the first refusal of the disk, and appends are refused before it
comes to that, when no more than as much again is free. Reads go on throughout. When there is space again the reserve is made
again, which proves it (a quota does not show in the free space), and appends go on by themselves.

Owner thread, except methods that say that they block.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from enum import IntEnum

from broker.errors import DiskFull
from broker.log.options import LogOptions
from broker.seams import Seams

logger = logging.getLogger("sprawl.log")

RESERVE_PATH = "reserve"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Space(IntEnum):
    """What may still be written, from everything to what the log itself needs (deletions, retention, manifests, footers)."""

    PLENTY = 0
    LOW = 1
    """No records: keyed state alone."""
    NONE = 2
    """Only what makes space."""


def is_full(problem: BaseException) -> bool:
    """Whether the disk, or a quota on it, refused for want of space."""
    return isinstance(problem, OSError) and problem.errno in _FULL


class DiskSpace:
    """One data folder's disk."""

    def __init__(self, seams: Seams, options: LogOptions) -> None:
        self._disk = seams.disk
        self._executor = seams.executor
        self._options = options
        self._kick = asyncio.Event()
        self._made = False  # its lane, which nobody else keeps busy
        self._refused = False  # by the disk itself: what it says to be free is not believed until a reserve could be made
        self._refusals = 0
        self.free = 0
        self.space = Space.PLENTY
        self.times_full = 0

    # -- before and at the start ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Blocking: a node must be able to start on a full disk, so that somebody can delete."""
        self.free = self._disk.free_bytes()
        if self.free < self._options.reserve_bytes and self._disk.exists(RESERVE_PATH):
            self._remove()
            self.free = self._disk.free_bytes()

    # -- asking -----------------------------------------------------------------------------------------------------------

    def require(self, *, records: bool) -> None:
        """Raises DiskFull: for records when space is low, for keyed state alone when there is none."""
        if self.space is not Space.PLENTY and (records or self.space is Space.NONE):
            raise self.problem()

    def problem(self) -> DiskFull:
        """Once the disk has refused, the reserve has to be had again besides what must be free above it."""
        return DiskFull(self.free, self._options.reserve_bytes * (2 if self._refused else 1))

    def room_for(self, size: int) -> bool:
        """Whether background work may take so much: not what the reserve is for."""
        return self.space is Space.PLENTY and self.free - size >= self._options.reserve_bytes

    # -- telling ----------------------------------------------------------------------------------------------------------

    def spent(self, size: int) -> None:
        """So much was written since the last look."""
        self.free = max(0, self.free - size)
        if self.free < self._options.reserve_bytes and self.space is Space.PLENTY:
            self._judge()
            self._kick.set()

    async def refused(self) -> None:
        """The disk said that it is full: give the reserve back."""
        self._refused = True
        self._refusals += 1
        self._judge()
        self._kick.set()
        await self._executor.run("space", self._give_back)

    def _give_back(self) -> None:
        """Blocking. A reserve that cannot be removed is tried again with the next refusal."""
        self._made = False
        try:
            if self._disk.exists(RESERVE_PATH):
                self._remove()
        except OSError as problem:
            logger.error("the reserve could not be given back: %s", problem)

    def _remove(self) -> None:
        """Blocking."""
        self._disk.remove(RESERVE_PATH)
        self._disk.sync_folder("")

    # -- watching ---------------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            pause_ms = self._options.space_check_ms if self.space is Space.PLENTY else self._options.recover_retry_ms
            try:
                async with asyncio.timeout(pause_ms / 1000):
                    await self._kick.wait()
            except TimeoutError:
                pass
            self._kick.clear()

    async def look(self) -> None:
        """How much is free now; makes the reserve, if it is time, and there is room for it and as much again."""
        refusals = self._refusals
        try:
            self.free, made = await self._executor.run("space", self._measure)
        except OSError as problem:
            logger.warning("the disk does not say what is free: %s", problem)
            return
        if made and refusals == self._refusals:  # it may have been given back meanwhile
            self._refused = False
        self._judge()

    def _measure(self) -> tuple[int, bool]:
        """Blocking."""
        size = self._options.reserve_bytes
        free = self._disk.free_bytes()
        roomy = free >= self._options.reserve_below_free_bytes and not self._refused
        if self._made or roomy:
            return free, self._made
        # Below that what was given back would be taken away at once; a refusal is over when this much can be had again.
        self._made = free >= 2 * size and self._make(size)
        return (self._disk.free_bytes() if self._made else free), self._made

    def _make(self, size: int) -> bool:
        """Blocking. Whether the reserve is there, whole."""
        if size == 0:
            return True
        try:
            if self._disk.exists(RESERVE_PATH):
                if self._size() == size:
                    return True
                self._remove()  # cut off while it was made, or another size now
            file = self._disk.open(RESERVE_PATH, create=True)
            try:
                if self._refused:  # under a quota only this shows that as much again is left
                    file.allocate(2 * size)
                    file.truncate(size)
                file.allocate(size)
                file.sync()
            finally:
                file.close()
            self._disk.sync_folder("")
        except OSError as problem:
            logger.warning("no space could be kept back: %s", problem)
            self._give_back()
            return False
        return True

    def _size(self) -> int:
        file = self._disk.open(RESERVE_PATH)
        try:
            return file.size()
        finally:
            file.close()

    def _judge(self) -> None:
        size = self._options.reserve_bytes
        before = self.space
        if self._refused or self.free < size // 2:
            self.space = Space.NONE
        elif self.free < size or (before is not Space.PLENTY and self.free < size + size // 4):
            self.space = Space.LOW  # ends a little above where it began, or it would flutter
        else:
            self.space = Space.PLENTY
        if before is Space.PLENTY and self.space is not Space.PLENTY:
            self.times_full += 1
            logger.error("%s", self.problem())
        elif before is not Space.PLENTY and self.space is Space.PLENTY:
            logger.warning("there is space again (%d bytes free): records are taken again", self.free)
