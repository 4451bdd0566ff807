"""The command line across a node that is killed: a publisher sends again, a follower goes on; nothing is lost or shown twice."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.services

SPRAWL = [sys.executable, "-m", "gateway.cli.main"]
ROWS = 6_000
WAIT_S = 60


def free_port() -> int:
    """The node comes back on the port it had, so that its clients find it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_node(home: Path, port: int) -> subprocess.Popen[str]:
    node = subprocess.Popen(
        [
            *SPRAWL,
            "serve",
            "--home",
            str(home),
            "--set",
            f"listeners.http.port={port}",
            "--set",
            "listeners.kafka.port=0",
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert node.stdout is not None
    assert node.stdout.readline(), "the node did not start"
    return node


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    process.communicate(timeout=WAIT_S)


@contextmanager
def sprawl(home: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*SPRAWL, *arguments, "--home", str(home), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def take(process: subprocess.Popen[str], count: int) -> list[Any]:
    assert process.stdout is not None
    lines = []
    while len(lines) < count:
        line = process.stdout.readline()
        assert line, (len(lines), process.stderr and process.stderr.read())
        lines.append(json.loads(line))
    return lines


def test_a_kill_between_records_loses_none_and_repeats_none(tmp_path: Path) -> None:
    home, port = tmp_path / "home", free_port()
    (tmp_path / "rows.ndjson").write_text("".join(f'{{"n": {number}}}\n' for number in range(ROWS)))
    node = start_node(home, port)
    try:
        with sprawl(home, "topics", "create", "rows", "--partitions", "1") as creating:
            assert creating.wait(WAIT_S) == 0
        follow = ("subscribe", "rows", "--from", "beginning")
        publish = ("publish", "rows", "--file", str(tmp_path / "rows.ndjson"), "--retries", "100")
        with sprawl(home, *follow) as follower, sprawl(home, *publish) as publisher:
            seen = take(follower, 600)  # under way: the publisher has sent more than one batch
            end(node, signal.SIGKILL)
            node = start_node(home, port)
            out, err = publisher.communicate(timeout=WAIT_S)
            assert publisher.returncode == 0, err
            totals = json.loads(out)
            assert totals["records"] == ROWS
            with sprawl(home, "topics", "describe", "rows") as describing:
                stored = take(describing, 1)[0]["partitions"][0]["high_watermark"]
            seen += take(follower, stored - len(seen))
    finally:
        end(node, signal.SIGTERM)

    assert [record["offset"] for record in seen] == list(range(stored))  # the follower: no gap, no repetition
    numbers = {}
    for record in seen:
        numbers.setdefault(record["id"], []).append(record["value"]["n"])
    # A batch whose answer was lost is stored twice, told apart by its message ids; no more of them than were sent again.
    assert sorted(values[0] for values in numbers.values()) == list(range(ROWS))
    assert stored - ROWS <= 500 * totals["resent_requests"]
    first_seen = [values[0] for values in numbers.values()]
    assert first_seen == sorted(first_seen)
