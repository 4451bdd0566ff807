"""A small file kept in two copies, each replaced whole (decision 0001, section 8).

A write makes first `.a`, then `.b` new and durable. Whatever is cut off or flipped, one copy is whole: the one being written is
never the only one. The reader is given both and decides by content which is newer and authentic.
"""

from __future__ import annotations

from contextlib import suppress

from broker.seams import Disk

SMALL_FILE_BYTES_MAX = 256 * 1024 * 1024


class TwoCopyFile:
    """Blocking; runs on an executor's lane, one write at a time."""

    def __init__(self, disk: Disk, folder: str, name: str) -> None:
        self._disk = disk
        self._folder = folder
        self._paths = tuple(f"{folder}/{name}.{copy}" if folder else f"{name}.{copy}" for copy in "ab")

    @property
    def paths(self) -> tuple[str, ...]:
        return self._paths

    def read_all(self) -> list[tuple[str, bytes]]:
        """The copies that exist, `.a` first."""
        return [(path, self._read(path)) for path in self._paths if self._disk.exists(path)]

    def _read(self, path: str) -> bytes:
        file = self._disk.open(path)
        try:
            return file.read_at(0, min(file.size(), SMALL_FILE_BYTES_MAX))
        finally:
            file.close()

    def write(self, data: bytes) -> None:
        """Durable in both copies when it returns."""
        for path in self._paths:
            self._replace(path, data)

    def _replace(self, path: str, data: bytes) -> None:
        temporary = f"{path}.new"
        if self._disk.exists(temporary):
            self._disk.remove(temporary)
        file = self._disk.open(temporary, create=True)
        try:
            file.write_at(0, [data])
            file.sync()
        except OSError:
            with suppress(OSError):  # what was begun would take the space that is short
                self._disk.remove(temporary)
            raise
        finally:
            file.close()
        self._disk.rename(temporary, path)
        self._disk.sync_folder(self._folder)
