"""Where the key store's bytes lie: two copies in the keys folder, the newest whole one counts."""

from __future__ import annotations

from broker.log.two_copies import TwoCopyFile
from broker.seams import Disk
from security.crypto import keystore_format
from security.errors import KeyStoreDamaged


class KeyStoreBlob:
    """`security.crypto.keystore.Blob` over a Disk. Blocking."""

    def __init__(self, disk: Disk, folder: str = "", name: str = "keystore") -> None:
        self._copies = TwoCopyFile(disk, folder, name)

    def read(self) -> bytes | None:
        """Repairs a lagging or damaged copy: after a crash within a shredding it would still hold the destroyed key."""
        copies = [data for _, data in self._copies.read_all()]
        if not copies:
            return None
        newest = max(copies, key=_generation)
        if _generation(newest) >= 0 and (len(copies) < len(self._copies.paths) or any(data != newest for data in copies)):
            self._copies.write(newest)
        return newest

    def write(self, data: bytes) -> None:
        self._copies.write(data)


class KeyStoreCopies:
    """The same for who only looks: nothing is written, and copies that are not the newest whole one are named."""

    def __init__(self, disk: Disk, folder: str = "", name: str = "keystore") -> None:
        self._copies = TwoCopyFile(disk, folder, name)
        self.wrong: list[tuple[str, str]] = []

    def read(self) -> bytes | None:
        copies = dict(self._copies.read_all())
        if not copies:
            return None
        newest = max(copies.values(), key=_generation)
        for path in self._copies.paths:
            if path not in copies:
                self.wrong.append((path, "is not there"))
            elif _generation(copies[path]) < 0:
                self.wrong.append((path, "is damaged"))
            elif copies[path] != newest:
                self.wrong.append((path, "is older than the other copy"))
        return newest

    def write(self, data: bytes) -> None:
        raise PermissionError("the key store is only looked at here")


def _generation(data: bytes) -> int:
    """-1 for a damaged copy, so that any whole one comes before it."""
    try:
        return keystore_format.generation(data)
    except KeyStoreDamaged:
        return -1
