"""Who asked for what: a line each, and none without its line."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from gateway.errors import Busy
from gateway.observe import lines
from gateway.observe.audit import AuditLog
from security.principal import Principal, PrincipalKind, Session

ALICE = Principal("user:alice", PrincipalKind.USER, "token", credential_id="abcdefgh2345")
SESSION = Session(ALICE, "127.0.0.1:40114", "rest", "request-1")


def opened(tmp_path: Path, now_ms: int = 1_767_225_600_123) -> AuditLog:
    return AuditLog(tmp_path / "audit.jsonl", lambda: now_ms, lines_max=100)


def test_a_line_says_who_what_and_what_became_of_it(tmp_path: Path) -> None:
    audit = opened(tmp_path)
    audit.record("access", SESSION, "publish", "orders", "denied", "no role allows it")
    assert audit.close()
    assert json.loads((tmp_path / "audit.jsonl").read_text()) == {
        "at": "2026-01-01T00:00:00.123Z",
        "event": "access",
        "action": "publish",
        "resource": "orders",
        "outcome": "denied",
        "reason": "no role allows it",
        "principal": "user:alice",
        "proved_by": "token",
        "credential": "abcdefgh2345",
        "peer": "127.0.0.1:40114",
        "protocol": "rest",
        "session": "request-1",
    }


def test_what_is_told_again_is_told_alike(tmp_path: Path) -> None:
    """Lines of what was allowed are made of a template: each with its own time and session, nothing of another's."""
    times = iter(range(1_767_225_600_123, 1_767_225_700_000, 1_001))
    audit = AuditLog(tmp_path / "audit.jsonl", lambda: next(times), lines_max=100)
    other = Session(Principal("user:bob", PrincipalKind.USER, "mtls"), "127.0.0.1:2", "rest", "request-3")
    asked = [
        (SESSION, "orders"),
        (Session(ALICE, "127.0.0.1:40114", "rest", "request-2"), "orders"),
        (SESSION, "pay"),
        (other, "pay"),
    ]
    for session, topic in asked:
        audit.record("access", session, "publish", topic, "allowed")
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    told = [(line["session"], line["resource"], line["principal"], line["at"][-7:]) for line in lines]
    assert told == [
        ("request-1", "orders", "user:alice", "00.123Z"),
        ("request-2", "orders", "user:alice", "01.124Z"),
        ("request-1", "pay", "user:alice", "02.125Z"),
        ("request-3", "pay", "user:bob", "03.126Z"),
    ]
    assert "reason" not in lines[0]
    assert (lines[0]["credential"], "credential" in lines[3]) == ("abcdefgh2345", False)


@pytest.mark.parametrize(
    "id", ["sprawl_abcdefgh2345_secretsecretsecret", "bearer.abcdefghijklmnopqrstuvwxyz", 'x","outcome":"denied']
)
def test_a_session_s_id_smuggles_nothing_in(tmp_path: Path, id: str) -> None:
    audit = opened(tmp_path)
    for _ in range(2):
        audit.record("access", Session(ALICE, "127.0.0.1:1", "rest", id), "publish", "orders", "allowed")
    audit.close()
    for line in (tmp_path / "audit.jsonl").read_text().splitlines():
        assert json.loads(line)["outcome"] == "allowed"
        assert "secretsecret" not in line
        assert "klmnop" not in line


def test_the_templates_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.observe.audit.TEMPLATES_MAX", 3)
    audit = opened(tmp_path)
    for number in range(10):
        audit.record("access", SESSION, "publish", f"orders-{number}", "allowed")
        assert len(audit._templates) <= 3
    audit.close()
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 10


def test_before_anybody_is_known_there_is_nobody_to_name(tmp_path: Path) -> None:
    audit = opened(tmp_path)
    audit.record("identity", None, "identify", "127.0.0.1:1", "refused")
    audit.close()
    assert set(json.loads((tmp_path / "audit.jsonl").read_text())) == {"at", "event", "action", "resource", "outcome"}


def test_lines_are_added_to_those_of_the_node_before(tmp_path: Path) -> None:
    for event in ("one", "two"):
        audit = opened(tmp_path)
        audit.record(event, None, "a", "r", "allowed")
        audit.close()
    written = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in written] == ["one", "two"]
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600


def test_names_of_any_length_and_content_stay_one_bounded_line_without_secrets(tmp_path: Path) -> None:
    audit = opened(tmp_path)
    token = "sprawl_abcdefgh2345_Zk3x9Qw7Lm2Np8Rt5Vy1Bc4Df6Gh0JkMnPqRsTuVw9x"
    audit.record("access", SESSION, "read", "a\nb\u2028" + "x" * 10_000, "denied", f"of {token}")
    audit.close()
    written = (tmp_path / "audit.jsonl").read_text()
    assert written.count("\n") == 1
    assert len(written) < 2_000
    assert token not in written
    assert "sprawl_abcdefgh2345_[redacted]" in written


def test_what_cannot_be_audited_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "ROOM_WAIT_S", 0.01)
    monkeypatch.setattr(lines, "CLOSE_WAIT_S", 0.05)
    (tmp_path / "gone").mkdir()
    audit = AuditLog(tmp_path / "gone" / "audit.jsonl", lambda: 0, lines_max=2)
    (tmp_path / "gone" / "audit.jsonl").unlink()
    (tmp_path / "gone").rmdir()  # the file cannot be begun again
    for _ in range(2):
        audit.record("access", SESSION, "publish", "orders", "allowed")
    with pytest.raises(Busy, match=r"logging\.audit_queue_lines_max \(2\) is reached"):
        audit.record("access", SESSION, "publish", "orders", "allowed")
    assert audit.flush() is False
    assert audit.failure == "No such file or directory"
    (tmp_path / "gone").mkdir()
    monkeypatch.setattr(lines, "CLOSE_WAIT_S", 10)
    assert audit.flush()  # the disk is back, and nothing was lost
    assert len((tmp_path / "gone" / "audit.jsonl").read_text().splitlines()) == 2
    assert audit.failure is None
    audit.close()


def test_one_who_does_the_same_again_and_again(tmp_path: Path) -> None:
    """Only the time differs; a reason, another outcome, another session are not taken for the same."""
    times = iter(range(1_767_225_600_001, 1_767_225_700_000))
    audit = AuditLog(tmp_path / "audit.jsonl", lambda: next(times), lines_max=100)
    twin = Session(ALICE, "127.0.0.1:40114", "rest", "request-2")
    asked = [
        (SESSION, "allowed", ""),
        (SESSION, "allowed", ""),
        (SESSION, "denied", ""),
        (SESSION, "denied", "why"),
        (twin, "denied", ""),
        (SESSION, "allowed", ""),
    ]
    for session, outcome, reason in asked:
        audit.record("access", session, "publish", "orders", outcome, reason)
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    told = [(line["session"], line["outcome"], line.get("reason", ""), int(line["at"][-4:-1])) for line in lines]
    assert told == [(session.id, outcome, reason, at) for at, (session, outcome, reason) in enumerate(asked, 1)]
