"""Fuzz target: the files of tokens and of users. Each input is tried as it is, and as a body whose checksum is right."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from security.identity.document_file import DocumentFile
from security.identity.token_file import TokenFile
from security.identity.user_file import UserFile
from tests.fuzz.refusals import check_secret_refusal

_TOKEN = (
    b'{"record":{"id":"abcdef0123456789","name":"ann","roles":[],"created_at_ms":1,"expires_at_ms":null,"revoked_at_ms":null},'
    b'"secret_sha256":"' + b"ab" * 32 + b'"}'
)
_USER = (
    b'{"record":{"name":"ann","roles":[],"created_at_ms":1},"scram":{"SCRAM-SHA-256":{"iterations":4096,"salt":"c2FsdA==",'
    b'"stored_key":"' + b"q6ur" * 10 + b'q6s=","server_key":"' + b"q6ur" * 10 + b'q6s="}}}'
)
CORPUS = [
    b'{"format":1,"body_sha256":"00","body":{"tokens":[]}}',
    b'{"tokens":[' + _TOKEN + b"]}",
    b'{"tokens":[' + _TOKEN + b"," + _TOKEN + b"]}",
    b'{"tokens":[{"secret_sha256":"zz"}]}',
    b'{"tokens":[]}\xff',
    b'{"users":[' + _USER + b'],"decoy_key":"c2FsdA=="}',
    b'{"users":[' + _USER + b"," + _USER + b"]}",
    b"[" * 3_000,
]
FILES: list[DocumentFile[Any]] = [TokenFile(Path("tokens.json")), UserFile(Path("users.json"))]


def one_input(data: bytes) -> None:
    for file in FILES:
        _try(file, data)
        _try(file, b'{"format":1,"body_sha256":"%b","body":%b}' % (hashlib.sha256(data).hexdigest().encode(), data))


def _try(file: DocumentFile[Any], data: bytes) -> None:
    try:
        file._parse(data)
    except ValueError as error:
        check_secret_refusal(error, "ab" * 32)
        check_secret_refusal(error, "q6ur" * 10)
