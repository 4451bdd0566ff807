"""One JSON document that the node and the command line on the same machine share: tokens, users.

    {"format": 1, "body_sha256": "...", "body": {...}}

It is replaced whole (temporary, fsync, rename, fsync folder), mode 0600 from its first moment, and only under a lock, read
again after taking it: so neither process can undo the other's revocation. The checksum covers the body's bytes as they stand;
it finds damage and edits by hand, not an attacker, who is kept out by the mode.
"""

import fcntl
import hashlib
import hmac
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeAlias, TypeVar

import msgspec

from security.errors import KeyFileDamaged, KeyFilePermissions, SecurityError
from security.files import PRIVATE_MODE, read_private, replace_file

FILE_BYTES_MAX = 64 * 1024 * 1024  # 10,000 ordinary tokens are 4 MB
LOCK_TRIES_MAX = 500
LOCK_PAUSE_S = 0.01  # x 500: a change waits at most 5 s for the other process
_FORMAT = 1

# Of the file when it was read: every change is a new inode; time and size tell apart an inode that is used again.
Stamp: TypeAlias = tuple[int, int, int]
Body = TypeVar("Body", bound=msgspec.Struct)


@dataclass(eq=False)
class StoreDamaged(SecurityError):
    """The file is not what was written, or not protected. `reason` never quotes its content."""

    what: ClassVar[str] = "document"
    loss: ClassVar[str] = "all of it is then gone"
    path: Path
    reason: str

    def __str__(self) -> str:
        return (
            f"the {self.what} file {self.path} cannot be used, {self.reason}: bring it back from a backup; "
            f"only if there is none, move it away and start again ({self.loss})"
        )


@dataclass(eq=False)
class StoreFull(SecurityError):
    """As much as may be is in use; `limit_name` says which bound."""

    what: ClassVar[str] = "document"
    room: ClassVar[str] = "take away what is no longer used"
    limit_name: str
    limit: int

    def __str__(self) -> str:
        return f"the {self.what} store is full ({self.limit_name} = {self.limit}): {self.room}"


@dataclass(eq=False)
class StoreBusy(SecurityError):
    """Another process held the lock of the store all the while."""

    what: ClassVar[str] = "document"
    path: Path

    def __str__(self) -> str:
        return f"another process is changing the {self.what}s and does not let go of {self.path}: try again, or stop that process"


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    body_sha256: str
    body: msgspec.Raw


_encoder = msgspec.json.Encoder(order="deterministic")


class DocumentFile(ABC, Generic[Body]):
    """One file and the lock beside it; what it holds is the subclass's. Every method blocks."""

    noun: ClassVar[str]
    """What there are many of in it, as in "tokens"."""
    damaged: ClassVar[type[StoreDamaged]]
    full: ClassVar[type[StoreFull]]
    busy: ClassVar[type[StoreBusy]]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_path = path.with_name(f"{path.name}.lock")

    @property
    @abstractmethod
    def empty(self) -> Body:
        """What a store begins with."""

    @abstractmethod
    def check(self, body: Body) -> None:
        """Raise `ValueError` where the parts of a body contradict each other."""

    def stamp(self) -> Stamp | None:
        """None when there is no file. Raises `StoreDamaged` when the disk does not answer."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise self.damaged(self.path, problem.strerror or "it cannot be reached") from problem
        return status.st_mtime_ns, status.st_size, status.st_ino

    def read(self) -> Body | None:
        """None when there is no file. Raises `StoreDamaged` for whatever is there and is not a whole, private store."""
        try:
            return self._parse(read_private(self.path, FILE_BYTES_MAX))
        except FileNotFoundError:
            return None
        except KeyFilePermissions as open_to_others:
            reason = f"its mode {open_to_others.mode:04o} lets others at it (run `chmod 600` and revoke what you do not know)"
            raise self.damaged(self.path, reason) from None
        except KeyFileDamaged as damage:
            raise self.damaged(self.path, damage.reason) from None
        except OSError as problem:
            raise self.damaged(self.path, problem.strerror or "it cannot be read") from problem
        except ValueError as problem:
            raise self.damaged(self.path, str(problem)) from None

    def write(self, body: Body) -> None:
        """Durable on return. Raises `StoreFull` and `OSError`."""
        raw = _encoder.encode(body)
        data = _encoder.encode(_Document(_FORMAT, hashlib.sha256(raw).hexdigest(), msgspec.Raw(raw)))
        if len(data) > FILE_BYTES_MAX:
            raise self.full("file_bytes_max", FILE_BYTES_MAX)
        replace_file(self.path, data, PRIVATE_MODE)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other writer out, on a file of its own since the store's is replaced. Raises `StoreBusy`."""
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT, PRIVATE_MODE)
        try:
            self._wait_for(descriptor)
            yield
        finally:
            os.close(descriptor)  # lets go of the lock

    def _wait_for(self, descriptor: int) -> None:
        for _ in range(LOCK_TRIES_MAX):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_S)
            else:
                return
        raise self.busy(self.lock_path)

    def _parse(self, data: bytes) -> Body:
        """Raises `ValueError` whose text says what is wrong and quotes nothing of the file."""
        try:
            document = msgspec.json.decode(data, type=_Document)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ValueError(f"it is not a file of {self.noun}, or only a part of one") from None
        if document.format != _FORMAT:
            raise ValueError(f"it has the format {document.format}, this version reads {_FORMAT}")
        raw = bytes(document.body)
        body_sha256 = hashlib.sha256(raw).hexdigest()
        if not hmac.compare_digest(body_sha256.encode(), document.body_sha256.encode()):
            advice = f"change {self.noun} with `sprawl {self.noun}`"
            raise ValueError(f"its checksum does not fit, it was damaged or edited by hand ({advice})")
        try:
            body = msgspec.json.decode(raw, type=type(self.empty))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ValueError(f"one of its {self.noun} cannot be read") from None
        self.check(body)
        return body
