"""`sprawl dlq` and `sprawl consumers` against a real node, with a consumer over WebSocket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.cli.connection import Connection
from gateway.cli.websocket_client import WebSocketClient

pytestmark = pytest.mark.services


def consume(node: Any, topic: str, name: str, *, reject: int = 0, ack: int = 0, detail: str = "") -> list[Any]:
    """Receive all that there is, acknowledge the first ones and reject the ones after them."""
    profile = node.profile
    with WebSocketClient(Connection(profile.url, profile.ca, profile.token), "sprawl.v1.json") as socket:

        def ask(**operation: Any) -> None:
            socket.send(json.dumps(operation))

        ask(op="consume", sub="s", consumer=name, topic=topic, **{"from": "earliest"})
        received: list[Any] = []
        while len(received) < ack + reject:
            message = json.loads(socket.recv(timeout=20))
            assert message["op"] != "error", message
            received += message["records"] if message["op"] == "records" else []
        ask(op="ack", sub="s", tags=[record["tag"] for record in received[:ack]], ref=1)
        ask(op="reject", sub="s", tags=[record["tag"] for record in received[ack : ack + reject]], reason=detail, ref=2)
        settled = 0
        while settled < 2:
            message = json.loads(socket.recv(timeout=20))
            assert message["op"] != "error", message
            settled += message["op"] == "settled"
        return received


def test_the_life_of_dead_letters(node: Any, topic: str) -> None:
    letters = f"{topic}.dlq"
    node.ok("topics", "create", topic, "--partitions", "1")
    node.ok("publish", f"{topic}/eu/7", '{"n": 1}', "text \x1b[31m", "3")
    consume(node, topic, "billing", ack=1, reject=2, detail="no such customer")

    listed = {row["topic"]: row for row in node.rows("dlq", "list")}
    assert listed[letters] == {"topic": letters, "of": [topic], "letters": 2}
    rows = node.rows("dlq", "list", letters)
    assert [(row["reason"], row["detail"], row["origin"]["offset"]) for row in rows] == [
        ("rejected", "no such customer", 1),
        ("rejected", "no such customer", 2),
    ]
    assert node.rows("dlq", "list", letters, "--count", "1") == rows[:1]
    assert node.rows("dlq", "list", letters, "--consumer", "nobody") == []
    assert node.rows("dlq", "show", letters, "0:1") == [rows[1]]
    for text in (node.ok("dlq", "list", letters), node.ok("dlq", "show", letters, "0:0"), node.ok("dlq", "list")):
        assert "\x1b[31m" not in text
        assert letters in text or "no such customer" in text

    (replayed,) = node.rows("dlq", "replay", letters, "0:1")
    assert (replayed["offset"], replayed["record"]["topic"], replayed["record"]["offset"]) == (1, topic, 3)
    everything = node.rows("dlq", "replay", letters, "--all")
    assert [one["offset"] for one in everything] == [0, 1]
    assert node.rows("dlq", "replay", letters, "--all", "--consumer", "nobody") == []
    assert [record.get("text", record.get("value")) for record in node.read(topic)] == [
        {"n": 1}, "text \x1b[31m", "3", "3", "text \x1b[31m", "3",
    ]  # fmt: skip

    (left,) = node.rows("dlq", "purge", letters, "--before", "0:1", "--yes")
    assert left["partitions"] == [{"partition": 0, "log_start": 1, "high_watermark": 2}]
    assert "0 left" in node.ok("dlq", "purge", letters, "--all", "--yes")
    assert "no dead letters" in node.ok("dlq", "list", letters)


def test_more_letters_than_a_page(node: Any, topic: str) -> None:
    node.ok("publish", topic, "-", stdin=b"\n".join(b"%d" % number for number in range(620)))
    consume(node, topic, "many", reject=620)
    assert len(node.rows("dlq", "list", f"{topic}.dlq")) == 620
    assert len(node.rows("dlq", "replay", f"{topic}.dlq", "--all")) == 620


def test_consumers(node: Any, topic: str) -> None:
    node.ok("publish", topic, "1", "2", "3")
    name = f"{topic}-billing"
    consume(node, topic, name, ack=2, reject=1)
    (shown,) = node.rows("consumers", "show", name)
    assert (shown["pending"], shown["lag_records"], shown["filter"]) == (0, 0, {"address": f"{topic}/#"})
    for arguments in (("consumers", "list"), ("consumers", "list", "--all")):
        (listed,) = [row for row in node.rows(*arguments) if row["name"] == name]
        assert listed | {"connected": None} == shown | {"connected": None}  # its connection may just have ended
    assert name in node.ok("consumers", "list")
    assert f"{topic}/#" in node.ok("consumers", "show", name)
    (sought,) = node.rows("consumers", "seek", name, "--to", "beginning")
    assert sought["lag_records"] == 3
    (sought,) = node.rows("consumers", "seek", name, "--to", "latest")
    assert sought["lag_records"] == 0
    assert node.rows("consumers", "give", name, "--to", "token:other") == [{"given": name, "to": "token:other"}]
    assert node.call("consumers", "show", name).exit_code == 1
    assert node.rows("consumers", "show", name, "--owner", "token:other")[0]["owner"] == "token:other"
    assert node.rows("consumers", "delete", name, "--owner", "token:other", "--yes") == [{"deleted": name}]
    result = node.call("consumers", "show", name, "--json")
    assert json.loads(result.stderr)["error"]["problem"]["status"] == 404


@pytest.mark.parametrize(
    "arguments",
    [
        ("dlq", "show", "t.dlq", "17"),
        ("dlq", "show", "t.dlq", "a:b"),
        ("dlq", "show", "t.dlq", "0:-1"),
        ("dlq", "show", "t.dlq", "0:" + "9" * 20),
        ("dlq", "replay", "t.dlq"),
        ("dlq", "replay", "t.dlq", "0:1", "--all"),
        ("dlq", "replay", "t.dlq", "0:1", "--consumer", "x"),
        ("dlq", "purge", "t.dlq"),
        ("dlq", "purge", "t.dlq", "--all", "--before", "0:1"),
        ("consumers", "seek", "x"),
        ("consumers", "seek", "x", "--to", "somewhere"),
        ("consumers", "give", "x"),
    ],
)
def test_usage_errors_are_2(node: Any, arguments: tuple[str, ...]) -> None:
    assert node.call(*arguments).exit_code == 2


@pytest.mark.parametrize("arguments", [("dlq", "purge", "t.dlq", "--all"), ("consumers", "delete", "x")])
def test_nothing_is_done_without_a_yes(node: Any, arguments: tuple[str, ...]) -> None:
    assert node.call(*arguments, stdin=b"n\n").exit_code == 2
