"""Key backups: copies of the key store that somebody keeps elsewhere, each listed with what it holds and until when.

Destroying a topic's key in the key store shreds the topic only if no copy of the key is left. So every backup is listed beside
the key store before it is written, and whoever deletes a topic is told which listed ones still hold its key. A backup holds
wrapped keys alone: without the key-encryption key it opens nothing.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from security.errors import KeyFileDamaged, KeyFormatUnsupported
from security.files import PRIVATE_MODE, create_file, read_private, replace_file

LIST_FILE = "key-backups.json"
FORMAT, VERSION = "sprawl-key-backups", 1
BACKUPS_MAX = 100
LIST_BYTES_MAX = 64 * 1024 * 1024


class KeyBackup(msgspec.Struct, frozen=True, kw_only=True):
    """`topics`: ids in hex of the topics whose keys it holds. Times are Unix, in milliseconds."""

    backup_id: str
    path: str
    made_at_ms: int
    expires_at_ms: int
    generation: int
    topics: frozenset[str]

    def holds(self, topic_id: bytes) -> bool:
        return topic_id.hex() in self.topics

    def expired(self, now_ms: int) -> bool:
        return self.expires_at_ms <= now_ms


class _List(msgspec.Struct, frozen=True, kw_only=True):
    format: str
    version: int
    backups: tuple[KeyBackup, ...] = ()


class TooManyBackups(ValueError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} lists {BACKUPS_MAX} key backups, its bound: destroy old ones and forget them")


class KeyBackups:
    """The list, in the keys folder. Blocking; one process changes it at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LIST_FILE

    def all(self) -> tuple[KeyBackup, ...]:
        """The oldest first. KeyFileDamaged, KeyFilePermissions, KeyFormatUnsupported."""
        try:
            data = read_private(self.path, LIST_BYTES_MAX)
        except FileNotFoundError:
            return ()
        try:
            found = msgspec.json.decode(data, type=_List)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            raise KeyFileDamaged(self.path, f"it is no list of key backups ({problem})") from None
        if found.format != FORMAT:
            raise KeyFileDamaged(self.path, "it is no list of key backups")
        if found.version > VERSION:
            raise KeyFormatUnsupported(str(self.path), found.version, VERSION)
        return found.backups

    def holding(self, topic_id: bytes) -> list[KeyBackup]:
        """Those that hold the topic's key, expired or not: only one that is forgotten is believed to be destroyed."""
        return [backup for backup in self.all() if backup.holds(topic_id)]

    def write(self, backup: KeyBackup, data: bytes) -> None:
        """List the backup, then write it: a copy that nobody knows of must not exist. FileExistsError, TooManyBackups."""
        path = Path(backup.path)
        if path.exists():
            raise FileExistsError(17, "File exists", backup.path)
        before = self.all()
        if len(before) >= BACKUPS_MAX:
            raise TooManyBackups(self.path)
        self._save((*before, backup))
        try:
            create_file(path, data, PRIVATE_MODE)
        except BaseException:
            self._save(before)
            raise

    def forget(self, backup_id: str) -> KeyBackup | None:
        """Take one off the list, its file gone if it can be reached from here; None when there is none of that id."""
        before = self.all()
        found = next((backup for backup in before if backup.backup_id == backup_id), None)
        if found is not None:
            Path(found.path).unlink(missing_ok=True)
            self._save(tuple(backup for backup in before if backup is not found))
        return found

    def _save(self, backups: tuple[KeyBackup, ...]) -> None:
        listed = _List(format=FORMAT, version=VERSION, backups=backups)
        replace_file(self.path, msgspec.json.format(msgspec.json.encode(listed)), PRIVATE_MODE)
