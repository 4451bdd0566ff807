"""`sprawl subscribe` with filters, over REST to the end and over WebSocket, against a real node."""

from typing import Any

import pytest

pytestmark = pytest.mark.services


def keys(rows: list[Any]) -> list[str]:
    return [row["key"] for row in rows]


@pytest.mark.parametrize("follow", [False, True])
def test_wildcards_prefixes_and_headers(node: Any, topic: str, follow: bool) -> None:
    for key, kind in (("eu/1", "paid"), ("us/1", "paid"), ("eu/2", "open")):
        node.ok("publish", f"{topic}/{key}", "x", "--header", f"type={kind}")
    for arguments, wanted in (
        ((f"{topic}/eu/+",), ["eu/1", "eu/2"]),
        ((f"{topic}/#",), ["eu/1", "us/1", "eu/2"]),
        ((topic, "--header", "type=paid"), ["eu/1", "us/1"]),
        ((f"{topic}/eu/+", "--header", "type=paid"), ["eu/1"]),
        ((topic, "--key-prefix", "us/"), ["us/1"]),
        ((f"{topic}/us/1", "--header", "type=paid"), ["us/1"]),
    ):
        bound = ("--count", str(len(wanted))) if follow else ("--no-follow",)
        assert keys(node.rows("subscribe", *arguments, "--from", "beginning", *bound)) == wanted


def test_many_topics_at_once(node: Any, topic: str) -> None:
    for name in (f"{topic}-a", f"{topic}-b"):
        node.ok("publish", f"{name}/{topic}/status", name)
        node.ok("publish", f"{name}/{topic}/other", name)
    rows = node.rows("subscribe", f"+/{topic}/status", "--from", "beginning", "--no-follow")
    assert [(row["topic"], row["text"]) for row in rows] == [(f"{topic}-a", f"{topic}-a"), (f"{topic}-b", f"{topic}-b")]
    followed = node.rows("subscribe", f"+/{topic}/status", "--from", "beginning", "--count", "2")
    assert [row["id"] for row in followed] == [row["id"] for row in rows]


def test_filters_that_are_none_are_refused_with_the_reason(node: Any, topic: str) -> None:
    node.ok("publish", topic, "x")
    for follow in ("--no-follow", "--follow"):
        result = node.call("subscribe", f"{topic}/#/x", follow)
        assert result.exit_code == 1
        assert "not the last" in result.stderr
    assert node.call("subscribe", topic, "--header", "nonsense").exit_code == 2


def test_publish_gives_a_time_to_live(node: Any, topic: str) -> None:
    node.ok("publish", f"{topic}/a", "x", "--ttl", "1h")
    lines = b'{"key": "b", "value": 1}\n{"key": "c", "value": 2, "expires_at": 253402300799999}\n'
    node.ok("publish", topic, "-", "--envelope", "--ttl", "1h", stdin=lines)
    lives = {row["key"]: row["expires_at"] - row["timestamp"] for row in node.read(topic)}
    assert 3_590_000 < lives["a"] < 3_610_000
    assert 3_590_000 < lives["b"] < 3_610_000
    assert lives["c"] > 10**12
    assert node.call("publish", topic, "x", "--ttl", "soon").exit_code == 2


def test_expired_records_are_not_shown(node: Any, topic: str) -> None:
    lines = b'{"key": "a", "value": 1, "expires_at": 1}\n{"key": "b", "value": 2, "ttl_ms": 3600000}\n'
    node.ok("publish", topic, "-", "--envelope", stdin=lines)
    for follow in (("--no-follow",), ("--count", "1")):
        (row,) = node.rows("subscribe", topic, "--from", "beginning", *follow)
        assert row["key"] == "b"
        assert row["expires_at"] > row["timestamp"] + 3_500_000
