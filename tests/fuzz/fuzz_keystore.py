"""Fuzz target: the bytes of the key store. Each input is tried as it is, and with its digest made right."""

from __future__ import annotations

import hashlib

from security.crypto.keystore import KeyStore
from security.crypto.keystore_format import DIGEST_BYTES, generation, open_store
from security.errors import SecurityError
from tests.fuzz.refusals import check_refusal
from tests.vectors.make_sealed_log_v1 import CountedRandom, MemoryBlob, bytes_of, make, make_kms

_KMS = make_kms()


def _empty() -> bytes:
    blob = MemoryBlob()
    KeyStore(blob, _KMS, CountedRandom("empty").bytes).create(bytes(16))
    assert blob.data is not None
    return blob.data


CORPUS = [bytes_of(make(), "key_store"), _empty()]
_ENTRIES = [open_store(data, _KMS).entries for data in CORPUS]


def one_input(data: bytes) -> None:
    _try(data)
    if len(data) >= DIGEST_BYTES:
        body = data[:-DIGEST_BYTES]
        _try(body + hashlib.sha256(body).digest())


def _try(data: bytes) -> None:
    try:
        assert generation(data) >= 0
    except SecurityError as error:
        check_refusal(error)
    try:
        contents = open_store(data, _KMS)
    except SecurityError as error:
        check_refusal(error)
        return
    assert contents.entries in _ENTRIES, "another table authenticates"
