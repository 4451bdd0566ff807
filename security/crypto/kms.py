"""Key management: who holds the key-encryption keys (KEKs) and wraps with them.

`KeyManagement` is the seam. `LocalFileKms` is the one that needs nothing beside the node: a JSON file outside the data
folder, so that a copy of the data alone opens nothing.

    {"format": "sprawl-keks", "version": 1, "keys": [
        {"id": "kek-5b2e90c4", "state": "active", "created_at_ms": 1767225600000, "key": "<32 bytes, base64>"}]}

active     wraps and unwraps; exactly one
previous   unwraps what it wrapped before the rotation, wraps nothing new
retired    neither; kept so that a backup under it can be named, and brought back by hand
"""

import fcntl
import os
import time
from base64 import b64decode
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

import msgspec

from security.crypto.envelope import KEY_BYTES, Cipher, Secret, unwrap_key, wrap_key
from security.errors import KeyFileBusy, KeyFileDamaged, KeyFileExists, KeyFormatUnsupported, KeyMissing
from security.files import PRIVATE_MODE, create_file, read_private, replace_file

KEK_FILE = "kek.json"
"""Name of the key-encryption key's file in a node's folder of keys."""

FORMAT = "sprawl-keks"
VERSION = 1
KEK_ID_RANDOM_BYTES = 4
KEK_ID_CHARACTERS_MAX = 2048  # what AWS KMS allows for a key id
KEY_FILE_BYTES_MAX = 1024 * 1024
"""About 6,000 KEKs: far more rotations than a node sees, far less than would hurt to read."""


class KeyManagement(Protocol):
    """Wraps 32-byte keys under KEKs that never leave it. `context` is authenticated with the key, not kept."""

    @property
    def key_id(self) -> str:
        """The active KEK: the one that `wrap` uses."""

    def key_ids(self) -> list[str]:
        """Every KEK that can unwrap, the active one first."""

    def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        """Wrap under the active KEK."""

    def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Raises KeyMissing when that KEK is not there, KeyWrong when it is another one of that name."""


class Kek(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key as the file holds it; `key` is base64 there."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=KEK_ID_CHARACTERS_MAX)]
    state: Literal["active", "previous", "retired"]
    created_at_ms: int
    key: Secret


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    format: str
    version: int
    keys: tuple[Kek, ...]


class _Preamble(msgspec.Struct, frozen=True):
    """What every version of the file has."""

    format: str
    version: int


def wall_clock_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


class LocalFileKms:
    """KEKs in one file, readable by its owner only. One thread changes it; any thread may wrap and unwrap."""

    def __init__(self, path: Path, keys: KeyFile, random: Callable[[int], bytes]) -> None:
        self._path = path
        self._random = random
        self._take(keys)

    @classmethod
    def create(
        cls,
        path: Path,
        random: Callable[[int], bytes] = os.urandom,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> Self:
        """Make the file, in a folder that exists, with one active KEK. Raises KeyFileExists; no file is ever replaced."""
        keys = KeyFile(FORMAT, VERSION, (_fresh_kek(random, clock_ms(), taken=()),))
        try:
            create_file(path, _encode(keys), PRIVATE_MODE)
        except FileExistsError:
            raise KeyFileExists(path) from None
        return cls(path, keys, random)

    @classmethod
    def load(cls, path: Path, random: Callable[[int], bytes] = os.urandom) -> Self:
        """Read the file. Raises KeyMissing (no file), KeyFilePermissions, KeyFileDamaged."""
        return cls(path, _read_key_file(path), random)

    @property
    def key_id(self) -> str:
        return self._active_id

    def key_ids(self) -> list[str]:
        usable = [key_id for key_id, kek in self._keks.items() if kek.state != "retired"]
        return sorted(usable, key=lambda key_id: key_id != self._active_id)

    def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        return wrap_key(_cipher(self._keks[self._active_id]), plaintext, context, self._random)

    def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        kek = self._keks.get(key_id)
        if kek is None:
            raise KeyMissing(str(self._path), key_id, "bring back the key file that belongs to this data")
        if kek.state == "retired":
            what_to_do = 'it is there but retired; set its state to "previous" in the file if it is still needed'
            raise KeyMissing(str(self._path), key_id, what_to_do)
        return unwrap_key(_cipher(kek), wrapped, context, key_id)

    def rotate(self, clock_ms: Callable[[], int] = wall_clock_ms) -> str:
        """Make a new active KEK and return its id; the old one becomes previous. Raises KeyFileBusy.

        Nothing is re-wrapped by this: `KeyStore.rewrap` does that.
        """
        with self._changing() as keys:
            fresh = _fresh_kek(self._random, clock_ms(), taken=[kek.id for kek in keys.keys])
            older = (_with_state(kek, "previous") if kek.state == "active" else kek for kek in keys.keys)
            self._replace((fresh, *older))
        return fresh.id

    def retire(self, key_id: str) -> None:
        """Stop a previous KEK from unwrapping: for when nothing is wrapped under it any more. Raises KeyMissing."""
        with self._changing() as keys:
            states = {kek.id: kek.state for kek in keys.keys}
            if key_id not in states:
                raise KeyMissing(str(self._path), key_id, "name one of its previous keys")
            if states[key_id] == "active":
                raise KeyMissing(f"the previous keys of {self._path}", key_id, "it is the active one; rotate first")
            self._replace(tuple(_with_state(kek, "retired") if kek.id == key_id else kek for kek in keys.keys))

    @contextmanager
    def _changing(self) -> Iterator[KeyFile]:
        """The file as it is now, read again under a lock: what another process added meanwhile is not lost."""
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # on the folder: the file itself is replaced
            except BlockingIOError:
                raise KeyFileBusy(self._path) from None
            yield _read_key_file(self._path)
        finally:
            os.close(folder)

    def _replace(self, keks: tuple[Kek, ...]) -> None:
        keys = KeyFile(FORMAT, VERSION, keks)
        replace_file(self._path, _encode(keys), PRIVATE_MODE)
        self._take(keys)

    def _take(self, keys: KeyFile) -> None:
        self._keks = {kek.id: kek for kek in keys.keys}
        self._active_id = next(kek.id for kek in keys.keys if kek.state == "active")

    def __repr__(self) -> str:
        return f"LocalFileKms({self._path}, active {self._active_id}, {len(self._keks)} keys)"


def _fresh_kek(random: Callable[[int], bytes], now_ms: int, taken: Collection[str]) -> Kek:
    key_id = f"kek-{random(KEK_ID_RANDOM_BYTES).hex()}"
    while key_id in taken:
        key_id = f"kek-{random(KEK_ID_RANDOM_BYTES).hex()}"
    return Kek(key_id, "active", now_ms, Secret(random(KEY_BYTES)))


def _with_state(kek: Kek, state: Literal["active", "previous", "retired"]) -> Kek:
    return msgspec.structs.replace(kek, state=state)


def _cipher(kek: Kek) -> Cipher:
    return Cipher(kek.key.reveal())


def _encode(keys: KeyFile) -> bytes:
    return msgspec.json.format(msgspec.json.encode(keys, enc_hook=Secret.reveal), indent=2)  # bytes become base64


def _decode_secret(_: type, text: Any) -> Secret:
    return Secret(b64decode(text, validate=True))


def _read_key_file(path: Path) -> KeyFile:
    try:
        raw = read_private(path, KEY_FILE_BYTES_MAX)
    except FileNotFoundError:
        what_to_do = "bring the key file back, or name its path; without it the data stays unreadable"
        raise KeyMissing(str(path), None, what_to_do) from None
    try:
        preamble = msgspec.json.decode(raw, type=_Preamble)
        if preamble.format == FORMAT and preamble.version > VERSION:
            raise KeyFormatUnsupported(str(path), preamble.version, VERSION)
        keys = msgspec.json.decode(raw, type=KeyFile, dec_hook=_decode_secret)
    except msgspec.ValidationError as error:
        # Only the place: the rest of the message may quote what stands there, and that may be a key.
        place = str(error).rpartition(" - at ")[2]
        where = place if place.startswith("`$") else "the top level"
        raise KeyFileDamaged(path, f"it has not the fields of a key file at {where}") from None
    except RecursionError:
        raise KeyFileDamaged(path, "its JSON is nested too deeply") from None
    except UnicodeDecodeError:
        raise KeyFileDamaged(path, "a string in it is no UTF-8") from None
    except msgspec.DecodeError as error:
        raise KeyFileDamaged(path, f"it is no JSON ({error})") from None
    _check(path, keys)
    return keys


def _check(path: Path, keys: KeyFile) -> None:
    ids = [kek.id for kek in keys.keys]
    active = [kek.id for kek in keys.keys if kek.state == "active"]
    short = [kek.id for kek in keys.keys if len(kek.key.reveal()) != KEY_BYTES]
    if (keys.format, keys.version) != (FORMAT, VERSION):
        raise KeyFileDamaged(path, f"it is not marked as {FORMAT} version {VERSION}")
    if len(active) != 1:
        raise KeyFileDamaged(path, f"it has {len(active)} active keys, where exactly one belongs")
    if len(set(ids)) != len(ids):
        raise KeyFileDamaged(path, "two of its keys have one id")
    if short:
        raise KeyFileDamaged(path, f"a key in it has not {KEY_BYTES} bytes: {short[0]}")
