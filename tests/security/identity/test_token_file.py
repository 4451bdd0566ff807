"""The file of tokens: private from birth, whole or refused, one writer at a time."""

import fcntl
import os
import stat

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from security.files import replace_file
from security.identity import document_file
from security.identity.token_file import (
    KeptToken,
    TokenFile,
    TokenFileBody,
    TokenRecord,
    TokenStoreBusy,
    TokenStoreDamaged,
    TokenStoreFull,
)
from security.policy.model import Action, Scope

RECORD = TokenRecord("a" * 12, "lift 7", ("publisher",), (Scope(frozenset(Action), "*"),), 1, 2, 3)
BODY = TokenFileBody(True, (KeptToken(RECORD, "0f" * 32), KeptToken(TokenRecord("b" * 12, "t", (), None, 1, None), "f0" * 32)))


@pytest.fixture
def file(tmp_path):
    return TokenFile(tmp_path / "tokens.json")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_is_read(file):
    assert file.read() is file.stamp() is None
    file.write(BODY)
    assert file.read() == BODY
    file.write(TokenFileBody())
    assert file.read() == TokenFileBody()


def test_every_file_is_private_whatever_the_umask(file):
    before = os.umask(0)
    try:
        with file.locked():
            file.write(BODY)
            assert {mode(path) for path in file.path.parent.iterdir()} == {0o600}
    finally:
        os.umask(before)
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["tokens.json", "tokens.json.lock"]


def test_every_write_has_its_own_stamp(file):
    stamps = []
    for _ in range(3):
        file.write(BODY)
        stamps.append(file.stamp())
    assert len(set(stamps)) == 3


def test_a_write_that_fails_leaves_the_old_file(file, monkeypatch):
    file.write(BODY)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="planted"):
        file.write(TokenFileBody())
    assert file.read() == BODY
    assert [path.name for path in file.path.parent.iterdir()] == ["tokens.json"]


def fail(*_):
    raise OSError(5, "planted")


def test_every_truncation_is_damage(file, monkeypatch):
    file.write(BODY)
    data = file.path.read_bytes()
    for end in range(len(data)):
        monkeypatch.setattr(document_file, "read_private", lambda *_, cut=data[:end]: cut)
        with pytest.raises(TokenStoreDamaged):
            file.read()


def test_every_flipped_bit_is_damage(file, monkeypatch):
    file.write(BODY)
    data = file.path.read_bytes()
    for position in range(8 * len(data)):
        spoiled = bytearray(data)
        spoiled[position // 8] ^= 1 << position % 8
        monkeypatch.setattr(document_file, "read_private", lambda *_, spoiled=bytes(spoiled): spoiled)
        with pytest.raises(TokenStoreDamaged) as damaged:
            file.read()
        assert "lift 7" not in str(damaged.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_no_bytes_break_it(file, monkeypatch, data):
    monkeypatch.setattr(document_file, "read_private", lambda *_: data)
    with pytest.raises(TokenStoreDamaged):
        file.read()


def with_checksum(body):
    return msgspec.json.encode(document_file._Document(1, document_file.hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))


KEPT = msgspec.to_builtins(BODY.tokens[0])


@pytest.mark.parametrize(
    "body",
    [
        {"admin_made": True, "tokens": [KEPT, KEPT]},
        {"admin_made": True, "tokens": [{**KEPT, "secret_sha256": ""}]},
        {"admin_made": True, "tokens": [{**KEPT, "secret_sha256": "0f"}]},
        {"admin_made": True, "tokens": [{**KEPT, "secret_sha256": "x" * 64}]},
        {"admin_made": True, "tokens": [{**KEPT, "more": 1}]},
        {"admin_made": True, "tokens": [{**KEPT, "record": {**KEPT["record"], "scopes": [{"actions": ["read"], "topic": ""}]}}]},
        {"admin_made": True, "tokens": [{**KEPT, "record": {**KEPT["record"], "expires_at_ms": "never"}}]},
        {"admin_made": 1, "tokens": []},
        [],
    ],
)
def test_a_body_that_contradicts_itself_is_damage_whatever_its_checksum(file, body):
    replace_file(file.path, with_checksum(msgspec.json.encode(body)), 0o600)
    with pytest.raises(TokenStoreDamaged):
        file.read()


def test_another_format_is_named(file):
    file.write(BODY)
    replace_file(file.path, file.path.read_bytes().replace(b'"format":1', b'"format":2'), 0o600)
    with pytest.raises(TokenStoreDamaged, match="the format 2, this version reads 1"):
        file.read()


@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_may_use_is_refused(file, open_mode):
    file.write(BODY)
    file.path.chmod(open_mode)
    with pytest.raises(TokenStoreDamaged, match=f"mode {open_mode:04o}"):
        file.read()


def test_a_disk_that_does_not_answer_is_damage_and_not_an_empty_store(file, monkeypatch):
    file.write(BODY)
    monkeypatch.setattr(document_file, "read_private", fail)
    with pytest.raises(TokenStoreDamaged, match="planted"):
        file.read()
    monkeypatch.setattr(type(file.path), "stat", fail)
    with pytest.raises(TokenStoreDamaged, match="planted"):
        file.stamp()


def test_the_file_has_a_bound_both_ways(file, monkeypatch):
    file.write(BODY)
    size = len(file.path.read_bytes())
    monkeypatch.setattr(document_file, "FILE_BYTES_MAX", size)
    file.write(BODY)
    assert file.read() == BODY
    monkeypatch.setattr(document_file, "FILE_BYTES_MAX", size - 1)
    with pytest.raises(TokenStoreFull, match="file_bytes_max"):
        file.write(BODY)
    with pytest.raises(TokenStoreDamaged, match="more than"):
        file.read()


def test_the_wait_for_the_lock_has_a_bound(file, monkeypatch):
    monkeypatch.setattr(document_file, "LOCK_TRIES_MAX", 3)
    monkeypatch.setattr(document_file, "LOCK_PAUSE_S", 0)
    with file.locked(), pytest.raises(TokenStoreBusy, match=r"tokens\.json\.lock"), TokenFile(file.path).locked():
        pytest.fail("two had the lock at once")


def test_the_lock_is_let_go_when_its_holder_fails(file):
    with pytest.raises(RuntimeError), file.locked():
        raise RuntimeError
    with file.locked(), open(file.lock_path) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with file.locked():
        pass
