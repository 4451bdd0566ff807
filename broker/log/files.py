"""Open files of the log, shared by readers, and unlinked when the last of them leaves."""

from __future__ import annotations

import logging
import threading

from broker.log.manifest import FileEntry
from broker.seams import Disk, File

logger = logging.getLogger("sprawl.log")


class LogFile:
    """One journal or segment. `hold` and `release` pair up; a retired file is removed after the last release.

    Counting is locked because reads end on executor threads. The entry is replaced when the file's state changes.
    """

    def __init__(self, disk: Disk, entry: FileEntry, file: File) -> None:
        self.entry = entry
        self.file = file
        self._disk = disk
        self._holders = 0
        self._retired = False
        self._closed = False
        self._lock = threading.Lock()

    @property
    def number(self) -> int:
        return self.entry.number

    @property
    def path(self) -> str:
        return self.entry.path

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            gone = self._retired and self._holders == 0
            last = self._closed and self._holders == 0
        if last:
            self.file.close()
        if gone:
            try:
                self._remove()
            except OSError as problem:  # not the reader's trouble: unlisted, it goes at the next start
                logger.warning("%s is not listed any more and could not be removed: %s", self.path, problem)

    def retire(self) -> None:
        """The manifest no longer lists it; blocking (unlinks) when nobody reads it."""
        with self._lock:
            self._retired = True
            gone = self._holders == 0
        if gone:
            self._remove()

    def close(self) -> None:
        """Now, or when the last reader leaves: another file must not get the descriptor that one still reads from."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            held = self._holders > 0
        if not held:
            self.file.close()

    def _remove(self) -> None:
        self.close()
        if self._disk.exists(self.path):
            self._disk.remove(self.path)
