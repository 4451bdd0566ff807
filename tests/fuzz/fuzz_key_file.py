"""Fuzz target: the file of key-encryption keys. What is refused says where, and never what stands there."""

from __future__ import annotations

import atexit
import base64
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from security.crypto.envelope import KEY_BYTES
from security.crypto.kms import FORMAT, VERSION, LocalFileKms
from security.errors import SecurityError
from tests.fuzz.refusals import check_secret_refusal

_FOLDER = TemporaryDirectory()
atexit.register(_FOLDER.cleanup)
_FILE = Path(_FOLDER.name) / "kek.json"
KEY = base64.b64encode(b"key material that nobody prints!"[:KEY_BYTES])


def _file(version: int = VERSION, state: bytes = b"active", key: bytes = KEY, more: bytes = b"") -> bytes:
    one = b'{"id":"kek-1","state":"%b","created_at_ms":1,"key":"%b"}' % (state, key)
    return b'{"format":"%b","version":%d,"keys":[%b%b]}' % (FORMAT.encode(), version, one, more)


CORPUS = [
    _file(),
    _file(VERSION + 1),
    _file(state=b"retired"),
    _file(key=KEY[:-4]),
    _file(key=b"no base64!"),
    _file(more=b',{"id":"kek-1","state":"active","created_at_ms":1,"key":"%b"}' % KEY),
    _file(key=b"\xff" + KEY),
    b"[" * 3_000,
]


def one_input(data: bytes) -> None:
    _FILE.unlink(missing_ok=True)
    with open(os.open(_FILE, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)
    try:
        kms = LocalFileKms.load(_FILE)
    except SecurityError as error:
        check_secret_refusal(error, KEY.decode())
        return
    key_id, wrapped = kms.key_id, kms.wrap(bytes(KEY_BYTES), b"context")
    assert kms.unwrap(key_id, wrapped, b"context") == bytes(KEY_BYTES)
