"""Fuzz target: the list of key backups, a file that an operator may edit or a disk may damage."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from security.crypto.key_backups import LIST_FILE, VERSION, KeyBackups
from security.errors import SecurityError
from tests.fuzz.refusals import check_refusal

_FOLDER = TemporaryDirectory()
atexit.register(_FOLDER.cleanup)
_LIST = KeyBackups(Path(_FOLDER.name))
_FILE = Path(_FOLDER.name) / LIST_FILE

_BACKUP = (
    b'{"backup_id":"b1","path":"/backups/keys-1","made_at_ms":1760000000000,"expires_at_ms":1770000000000,"generation":3,'
    b'"topics":["00112233445566778899aabbccddeeff"]}'
)
CORPUS = [
    b'{"format":"sprawl-key-backups","version":1,"backups":[' + _BACKUP + b"]}",
    b'{"format":"sprawl-key-backups","version":%d,"backups":[]}' % (VERSION + 1),
    b'{"format":"another","version":1}',
    b'{"format":"sprawl-key-backups","version":1,"backups":[{}]}',
    b'{"format":"sprawl-key-backups","version":1e400}',
    b"[" * 5_000,
]


def one_input(data: bytes) -> None:
    _FILE.unlink(missing_ok=True)
    with open(os.open(_FILE, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)
    try:
        found = _LIST.all()
    except SecurityError as error:
        check_refusal(error)
        return
    for backup in found:
        assert backup.expired(backup.expires_at_ms)
        assert all(isinstance(topic, str) for topic in backup.topics)
    assert _LIST.holding(bytes.fromhex("00112233445566778899aabbccddeeff")) == [
        backup for backup in found if "00112233445566778899aabbccddeeff" in backup.topics
    ]
