"""Fuzz target: the file of tokens. Each input is tried as it is, and as the body of a file whose checksum is right."""

from __future__ import annotations

import hashlib

import msgspec

from security.identity import token_file
from tests.fuzz.refusals import check_secret_refusal

_TOKEN = (
    b'{"record":{"id":"abcdef0123456789","name":"ann","roles":[],"created_at_ms":1,"expires_at_ms":null,"revoked_at_ms":null},'
    b'"secret_sha256":"' + b"ab" * 32 + b'"}'
)
CORPUS = [
    b'{"format":1,"body_sha256":"00","body":{"tokens":[]}}',
    b'{"tokens":[' + _TOKEN + b"]}",
    b'{"tokens":[' + _TOKEN + b"," + _TOKEN + b"]}",
    b'{"tokens":[{"secret_sha256":"zz"}]}',
    b'{"tokens":[]}\xff',
    b"[" * 3_000,
]


def one_input(data: bytes) -> None:
    _try(data)
    try:
        body = msgspec.Raw(data)
        _try(b'{"format":1,"body_sha256":"%b","body":%b}' % (hashlib.sha256(data).hexdigest().encode(), bytes(body)))
    except UnicodeEncodeError:
        return


def _try(data: bytes) -> None:
    try:
        token_file._parse(data)
    except ValueError as error:
        check_secret_refusal(error, "ab" * 32)
