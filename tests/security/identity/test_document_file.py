"""The files of tokens and of users: private from birth, whole or refused, one writer at a time."""

import fcntl
import os
import stat

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from security.files import replace_file
from security.identity import document_file
from security.identity.scram import ITERATIONS_MIN, ScramSecret
from security.identity.token_file import KeptToken, TokenFile, TokenFileBody, TokenRecord
from security.identity.user_file import KeptUser, UserFile, UserFileBody, UserRecord
from security.policy.model import Action, Scope

RECORD = TokenRecord("a" * 12, "lift 7", ("publisher",), (Scope(frozenset(Action), "*"),), 1, 2, 3)
TOKENS = TokenFileBody(True, (KeptToken(RECORD, "0f" * 32), KeptToken(TokenRecord("b" * 12, "t", (), None, 1, None), "f0" * 32)))
SCRAM = {"SCRAM-SHA-256": ScramSecret(ITERATIONS_MIN, b"salt", b"\x01" * 32, b"\x02" * 32)}
USERS = UserFileBody((KeptUser(UserRecord("lift 7", ("publisher",), 1), SCRAM), KeptUser(UserRecord("u", (), 2), {})), b"key" * 8)
BODIES = {TokenFile: TOKENS, UserFile: USERS}


@pytest.fixture(params=BODIES, ids=lambda kind: kind.noun)
def file(request, tmp_path):
    return request.param(tmp_path / f"{request.param.noun}.json")


@pytest.fixture
def body(file):
    return BODIES[type(file)]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_is_read(file, body):
    assert file.read() is file.stamp() is None
    file.write(body)
    assert file.read() == body
    file.write(file.empty)
    assert file.read() == file.empty


def test_every_file_is_private_whatever_the_umask(file, body):
    before = os.umask(0)
    try:
        with file.locked():
            file.write(body)
            assert {mode(path) for path in file.path.parent.iterdir()} == {0o600}
    finally:
        os.umask(before)
    assert sorted(path.name for path in file.path.parent.iterdir()) == [file.path.name, file.lock_path.name]


def test_every_write_has_its_own_stamp(file, body):
    stamps = []
    for _ in range(3):
        file.write(body)
        stamps.append(file.stamp())
    assert len(set(stamps)) == 3


def test_a_write_that_fails_leaves_the_old_file(file, monkeypatch, body):
    file.write(body)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="planted"):
        file.write(file.empty)
    assert file.read() == body
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]


def fail(*_):
    raise OSError(5, "planted")


def test_every_truncation_is_damage(file, monkeypatch, body):
    file.write(body)
    data = file.path.read_bytes()
    for end in range(len(data)):
        monkeypatch.setattr(document_file, "read_private", lambda *_, cut=data[:end]: cut)
        with pytest.raises(file.damaged):
            file.read()


def test_every_flipped_bit_is_damage(file, monkeypatch, body):
    file.write(body)
    data = file.path.read_bytes()
    for position in range(8 * len(data)):
        spoiled = bytearray(data)
        spoiled[position // 8] ^= 1 << position % 8
        monkeypatch.setattr(document_file, "read_private", lambda *_, spoiled=bytes(spoiled): spoiled)
        with pytest.raises(file.damaged) as damaged:
            file.read()
        assert "lift 7" not in str(damaged.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_no_bytes_break_it(file, monkeypatch, data):
    monkeypatch.setattr(document_file, "read_private", lambda *_: data)
    with pytest.raises(file.damaged):
        file.read()


def with_checksum(body):
    return msgspec.json.encode(document_file._Document(1, document_file.hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))


TOKEN, USER = msgspec.to_builtins(TOKENS.tokens[0]), msgspec.to_builtins(USERS.users[0])
SHORT = {**USER["scram"]["SCRAM-SHA-256"], "server_key": "AQ=="}

CONTRADICTIONS = [
    (TokenFile, {"admin_made": True, "tokens": [TOKEN, TOKEN]}),
    (TokenFile, {"admin_made": True, "tokens": [{**TOKEN, "secret_sha256": ""}]}),
    (TokenFile, {"admin_made": True, "tokens": [{**TOKEN, "secret_sha256": "0f"}]}),
    (TokenFile, {"admin_made": True, "tokens": [{**TOKEN, "secret_sha256": "x" * 64}]}),
    (TokenFile, {"admin_made": True, "tokens": [{**TOKEN, "more": 1}]}),
    (TokenFile, {"tokens": [{**TOKEN, "record": {**TOKEN["record"], "scopes": [{"actions": ["read"], "topic": ""}]}}]}),
    (TokenFile, {"admin_made": True, "tokens": [{**TOKEN, "record": {**TOKEN["record"], "expires_at_ms": "never"}}]}),
    (TokenFile, {"admin_made": 1, "tokens": []}),
    (TokenFile, []),
    (UserFile, {"users": [USER, USER]}),
    (UserFile, {"users": [{**USER, "more": 1}]}),
    (UserFile, {"users": [{**USER, "scram": {"SCRAM-SHA-1": USER["scram"]["SCRAM-SHA-256"]}}]}),
    (UserFile, {"users": [{**USER, "scram": {"SCRAM-SHA-512": USER["scram"]["SCRAM-SHA-256"]}}]}),
    (UserFile, {"users": [{**USER, "scram": {"SCRAM-SHA-256": SHORT}}]}),
    (UserFile, {"users": [{**USER, "scram": {"SCRAM-SHA-256": {**USER["scram"]["SCRAM-SHA-256"], "salt": "?"}}}]}),
    (UserFile, {"users": {}}),
    (UserFile, []),
]


@pytest.mark.parametrize(("kind", "document"), CONTRADICTIONS)
def test_a_body_that_contradicts_itself_is_damage_whatever_its_checksum(tmp_path, kind, document):
    file = kind(tmp_path / "file.json")
    replace_file(file.path, with_checksum(msgspec.json.encode(document)), 0o600)
    with pytest.raises(file.damaged):
        file.read()


def test_another_format_is_named(file, body):
    file.write(body)
    replace_file(file.path, file.path.read_bytes().replace(b'"format":1', b'"format":2'), 0o600)
    with pytest.raises(file.damaged, match="the format 2, this version reads 1"):
        file.read()


@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_may_use_is_refused(file, open_mode, body):
    file.write(body)
    file.path.chmod(open_mode)
    with pytest.raises(file.damaged, match=f"mode {open_mode:04o}"):
        file.read()


def test_a_disk_that_does_not_answer_is_damage_and_not_an_empty_store(file, monkeypatch, body):
    file.write(body)
    monkeypatch.setattr(document_file, "read_private", fail)
    with pytest.raises(file.damaged, match="planted"):
        file.read()
    monkeypatch.setattr(type(file.path), "stat", fail)
    with pytest.raises(file.damaged, match="planted"):
        file.stamp()


def test_the_file_has_a_bound_both_ways(file, monkeypatch, body):
    file.write(body)
    size = len(file.path.read_bytes())
    monkeypatch.setattr(document_file, "FILE_BYTES_MAX", size)
    file.write(body)
    assert file.read() == body
    monkeypatch.setattr(document_file, "FILE_BYTES_MAX", size - 1)
    with pytest.raises(file.full, match="file_bytes_max"):
        file.write(body)
    with pytest.raises(file.damaged, match="more than"):
        file.read()


def test_the_wait_for_the_lock_has_a_bound(file, monkeypatch):
    monkeypatch.setattr(document_file, "LOCK_TRIES_MAX", 3)
    monkeypatch.setattr(document_file, "LOCK_PAUSE_S", 0)
    with file.locked(), pytest.raises(file.busy, match=r"\.json\.lock"), type(file)(file.path).locked():
        pytest.fail("two had the lock at once")


def test_the_lock_is_let_go_when_its_holder_fails(file):
    with pytest.raises(RuntimeError), file.locked():
        raise RuntimeError
    with file.locked(), open(file.lock_path) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with file.locked():
        pass
