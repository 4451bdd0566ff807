"""`sprawl consume` against a real node."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.consume import SHOWN_AHEAD
from gateway.endpoints.websocket_options import WebSocketOptions
from tests.services.node_process import NodeProcess

pytestmark = pytest.mark.services

# Acknowledges "good", rejects "bad", refuses "later" until its second delivery; writes down what it was told.
WORKER = """
import json, os, sys
value = sys.stdin.buffer.read().decode()
facts = {name: os.environ[name] for name in os.environ if name.startswith("RECORD_")}
with open(sys.argv[1], "a") as out:
    out.write(json.dumps([value, facts]) + "\\n")
sys.exit(65 if value == "bad" else 1 if value == "later" and facts["RECORD_ATTEMPT"] == "1" else 0)
"""


@pytest.fixture
def worker(tmp_path: Path) -> tuple[str, Path]:
    """The command, and the file of what it was told."""
    (tmp_path / "worker.py").write_text(WORKER)
    return f"{sys.executable} {tmp_path / 'worker.py'} '{tmp_path / 'told'}'", tmp_path / "told"


def test_it_goes_on_where_it_stopped(node: Any, topic: str) -> None:
    node.ok("publish", topic, "1", "2", "3")
    first = node.rows("consume", topic, "--as", topic, "--from", "beginning", "--count", "2")
    rest = node.rows("consume", topic, "--as", topic, "--idle", "1s")
    assert sorted(row["text"] for row in first + rest) == ["1", "2", "3"]
    assert {row["attempt"] for row in first + rest} == {1}
    assert node.rows("consume", topic, "--as", topic, "--idle", "1s") == []
    node.ok("publish", topic, "4")
    assert "4" in node.ok("consume", topic, "--as", topic, "--count", "1")


def test_a_command_decides(node: Any, topic: str, worker: tuple[str, Path]) -> None:
    command, told = worker
    node.ok("topics", "create", topic, "--partitions", "1")
    node.ok("publish", f"{topic}/eu/7", "good", "bad", "later")
    rows = node.rows("consume", topic, "--as", topic, "--from", "beginning", "--exec", command, "--count", "4")
    assert [(row["text"], row["attempt"]) for row in rows] == [("good", 1), ("bad", 1), ("later", 1), ("later", 2)]
    values = [json.loads(line) for line in told.read_text().splitlines()]
    assert [value for value, _ in values] == ["good", "bad", "later", "later"]
    facts = values[3][1]
    assert (facts["RECORD_TOPIC"], facts["RECORD_KEY"], facts["RECORD_OFFSET"], facts["RECORD_ATTEMPT"]) == (
        topic,
        "eu/7",
        "2",
        "2",
    )
    (letter,) = node.rows("dlq", "list", f"{topic}.dlq")
    assert (letter["record"]["text"], letter["reason"], letter["detail"]) == ("bad", "rejected", "python ended with 65") or (
        letter["detail"].endswith("ended with 65")
    )


def test_failures_end_as_dead_letters(node: Any, topic: str) -> None:
    node.ok("publish", topic, "1")
    node.ok("consume", topic, "--as", topic, "--from", "beginning", "--exec", "false", "--deliveries", "1", "--count", "1")
    (letter,) = node.rows("dlq", "list", f"{topic}.dlq")
    assert (letter["reason"], letter["attempts"], letter["detail"]) == ("deliveries-exhausted", 1, "false ended with 1")


def test_a_filter_with_wildcards(node: Any, topic: str) -> None:
    node.ok("publish", f"{topic}/eu/1", "1")
    node.ok("publish", f"{topic}/us/1", "2")
    arguments = ("consume", f"{topic}/eu/+", "--as", topic, "--from", "beginning", "--count", "1")
    assert [row["text"] for row in node.rows(*arguments)] == ["1"]


def test_refusals(node: Any, topic: str) -> None:
    node.ok("publish", topic, "1")
    result = node.call("consume", topic, "--as", "no good name", "--json")
    assert (result.exit_code, json.loads(result.stderr)["error"]["problem"]["type"]) == (1, "/problems/consumer-invalid")
    assert node.call("consume", topic, "--as", topic, "--from", "beginning", "--exec", "/no/such/command").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [("t",), ("t", "--as", "x", "--from", "somewhere"), ("t", "--as", "x", "--idle", "soon"), ("t", "--as", "x", "--exec", "'"),
     ("t", "--as", "x", "--exec", ""), ("t", "--as", "x", "--deliveries", "0"), ("t", "--as", "x", "--count", "0")],
)  # fmt: skip
def test_usage_errors_are_2(node: Any, arguments: tuple[str, ...]) -> None:
    assert node.call("consume", *arguments).exit_code == 2


def test_it_comes_back_after_the_node_was_killed(tmp_path: Path) -> None:
    """What it settled for sure is not shown again, and what it did not is: nothing is left out.

    What was shown and comes again is, for each connection that was lost, what the node had sent ahead, and the settlements it had
    taken but not yet on its disk: they made room for more at once.
    """
    home = tmp_path / "home"
    with NodeProcess(home) as killed:
        rows = "".join(f"{number}\n" for number in range(2_000)).encode()
        arguments = [sys.executable, "-m", "gateway.cli.main"]
        subprocess.run(
            [*arguments, "publish", "rows", "-", "--home", str(home)], input=rows, check=True, capture_output=True, timeout=60
        )
        command = [
            *arguments,
            "consume",
            "rows",
            "--as",
            "x",
            "--from",
            "beginning",
            "--idle",
            "8s",
            "--json",
            "--home",
            str(home),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as consumer:
            assert consumer.stdout is not None
            shown = [json.loads(consumer.stdout.readline()) for _ in range(150)]
            killed.kill()
            killed.start()
            assert consumer.stderr is not None
            rest, remarks = consumer.stdout.read(), consumer.stderr.read()  # `communicate` forgets what `readline` read ahead
            assert consumer.wait(60) == 0, remarks
        cuts = remarks.count("connected again")
        assert cuts >= 1
        shown += [json.loads(line) for line in rest.splitlines()]
        numbers = [int(record["text"]) for record in shown]
        assert set(numbers) == set(range(2_000))
        assert len(numbers) - 2_000 <= cuts * (SHOWN_AHEAD + WebSocketOptions().publishes_in_flight_max)
        assert killed.stop() == 0
