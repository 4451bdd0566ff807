"""The file of tokens: one JSON document that the node and the command line on the same machine share.

    {"format": 1, "body_sha256": "...", "body": {"admin_made": true, "tokens": [{"record": {...}, "secret_sha256": "..."}]}}

It is replaced whole (temporary, fsync, rename, fsync folder), mode 0600 from its first moment, and only under a lock, read
again after taking it: so neither process can undo the other's revocation. The checksum covers the body's bytes as they stand;
it finds damage and edits by hand, not an attacker, who is kept out by the mode.
"""

import fcntl
import hashlib
import hmac
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from security.errors import KeyFileDamaged, KeyFilePermissions, SecurityError
from security.files import PRIVATE_MODE, read_private, replace_file
from security.policy.model import Scope

FILE_BYTES_MAX = 64 * 1024 * 1024  # 10,000 ordinary tokens are 4 MB
LOCK_TRIES_MAX = 500
LOCK_PAUSE_S = 0.01  # x 500: a change waits at most 5 s for the other process
_FORMAT = 1

# Of the file when it was read: every change is a new inode; time and size tell apart an inode that is used again.
Stamp: TypeAlias = tuple[int, int, int]


@dataclass(eq=False)
class TokenStoreDamaged(SecurityError):
    """The file of tokens is not what was written, or not protected. `reason` never quotes its content."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return (
            f"the token file {self.path} cannot be used, {self.reason}: bring it back from a backup; "
            "only if there is none, move it away and start again to get a new admin token (all other tokens are then gone)"
        )


@dataclass(eq=False)
class TokenStoreFull(SecurityError):
    """As many tokens as may be are in use; `limit_name` says which bound."""

    limit_name: str
    limit: int

    def __str__(self) -> str:
        return f"the token store is full ({self.limit_name} = {self.limit}): revoke tokens that are no longer used"


@dataclass(eq=False)
class TokenStoreBusy(SecurityError):
    """Another process held the lock of the store all the while."""

    path: Path

    def __str__(self) -> str:
        return f"another process is changing the tokens and does not let go of {self.path}: try again, or stop that process"


class TokenRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be known of a token. Times are Unix time in milliseconds. `scopes` None: not narrowed."""

    id: str
    name: str
    roles: tuple[str, ...]
    scopes: tuple[Scope, ...] | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None = None

    def dead(self, now_ms: int) -> bool:
        """Revoked or expired: it can never be used again."""
        return self.revoked_at_ms is not None or (self.expires_at_ms is not None and self.expires_at_ms <= now_ms)


class KeptToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record and the hash of its secret: apart, so that what is listed and rendered is a record and never holds the hash."""

    record: TokenRecord
    secret_sha256: str

    def __repr__(self) -> str:
        return f"KeptToken({self.record!r})"


class TokenFileBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`admin_made` stays true for ever, so that a node whose admin token was revoked does not make another by itself."""

    admin_made: bool = False
    tokens: tuple[KeptToken, ...] = ()


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    body_sha256: str
    body: msgspec.Raw


_encoder = msgspec.json.Encoder(order="deterministic")


class TokenFile:
    """One file of tokens and the lock beside it. Every method blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_path = path.with_name(f"{path.name}.lock")

    def stamp(self) -> Stamp | None:
        """None when there is no file. Raises `TokenStoreDamaged` when the disk does not answer."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise TokenStoreDamaged(self.path, problem.strerror or "it cannot be reached") from problem
        return status.st_mtime_ns, status.st_size, status.st_ino

    def read(self) -> TokenFileBody | None:
        """None when there is no file. Raises `TokenStoreDamaged` for whatever is there and is not a whole, private store."""
        try:
            return _parse(read_private(self.path, FILE_BYTES_MAX))
        except FileNotFoundError:
            return None
        except KeyFilePermissions as open_to_others:
            reason = f"its mode {open_to_others.mode:04o} lets others at it (run `chmod 600` and revoke what you do not know)"
            raise TokenStoreDamaged(self.path, reason) from None
        except KeyFileDamaged as damage:
            raise TokenStoreDamaged(self.path, damage.reason) from None
        except OSError as problem:
            raise TokenStoreDamaged(self.path, problem.strerror or "it cannot be read") from problem
        except ValueError as problem:
            raise TokenStoreDamaged(self.path, str(problem)) from None

    def write(self, body: TokenFileBody) -> None:
        """Durable on return. Raises `TokenStoreFull` and `OSError`."""
        raw = _encoder.encode(body)
        data = _encoder.encode(_Document(_FORMAT, hashlib.sha256(raw).hexdigest(), msgspec.Raw(raw)))
        if len(data) > FILE_BYTES_MAX:
            raise TokenStoreFull("file_bytes_max", FILE_BYTES_MAX)
        replace_file(self.path, data, PRIVATE_MODE)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other writer out, on a file of its own since the store's is replaced. Raises `TokenStoreBusy`."""
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
        raise TokenStoreBusy(self.lock_path)


def _parse(data: bytes) -> TokenFileBody:
    """Raises `ValueError` whose text says what is wrong and quotes nothing of the file."""
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ValueError("it is not a file of tokens, or only a part of one") from None
    if document.format != _FORMAT:
        raise ValueError(f"it has the format {document.format}, this version reads {_FORMAT}")
    raw = bytes(document.body)
    body_sha256 = hashlib.sha256(raw).hexdigest()
    if not hmac.compare_digest(body_sha256.encode(), document.body_sha256.encode()):
        raise ValueError("its checksum does not fit, it was damaged or edited by hand (change tokens with `sprawl tokens`)")
    try:
        body = msgspec.json.decode(raw, type=TokenFileBody)
        digests_bytes = {len(bytes.fromhex(kept.secret_sha256)) for kept in body.tokens}
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ValueError("one of its tokens cannot be read") from None
    if digests_bytes - {hashlib.sha256().digest_size} or len({kept.record.id for kept in body.tokens}) < len(body.tokens):
        raise ValueError("one of its tokens contradicts itself or another")
    return body
