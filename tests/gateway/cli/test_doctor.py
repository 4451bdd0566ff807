"""Each check finds what it is there for, on real files and sockets."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli.main import main
from tests.gateway.cli.conftest import Node


def examined(home: Path, *flags: str) -> tuple[int, list[dict[str, Any]]]:
    result = CliRunner().invoke(main, ["doctor", "--home", str(home), "--json", *flags])
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


def of(findings: list[dict[str, Any]], check: str) -> list[str]:
    return [f"{finding['verdict']}: {finding['seen']}" for finding in findings if finding["check"] == check]


def test_a_running_node_has_no_problem(node: Node) -> None:
    code, findings = examined(node.home)
    assert code == 0, findings
    assert of(findings, "node") == [f"ok: runs at {node.profile.url}"]
    assert of(findings, "ready") == ["ok: the node says that it is ready"]
    assert [finding for finding in findings if finding["verdict"] != "ok" and not finding["what_to_do"]] == []
    assert not list(Path(node.home, "data").glob(".doctor-*"))


def test_before_the_first_start_nothing_is_wrong_and_nothing_is_made(tmp_path: Path) -> None:
    code, findings = examined(tmp_path / "home", "--set", "listeners.http.port=0", "--set", "listeners.kafka.port=0")
    assert code == 0, findings
    assert not (tmp_path / "home").exists()
    assert of(findings, "keys") == ["ok: none yet: the first start makes them"]


def test_a_port_that_somebody_else_holds(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, findings = examined(tmp_path / "home", "--set", f"listeners.http.port={port}", "--set", "listeners.kafka.port=0")
    assert code == 1
    assert str(port) in of(findings, "ports")[0]


def test_a_port_of_kafka_that_somebody_else_holds(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        flags = ("--set", "listeners.http.port=0", "--set", f"listeners.kafka.port={other.getsockname()[1]}")
        code, findings = examined(tmp_path / "home", *flags)
        assert code == 1
        assert "listeners.kafka.port" in of(findings, "ports")[0]
        code, findings = examined(tmp_path / "home", *flags, "--set", "listeners.kafka.enabled=false")
        assert code == 0
        assert [text.split(" ")[1] for text in of(findings, "listeners")] == ["http"]


def test_plain_and_anonymous_listeners_are_warned_about(tmp_path: Path) -> None:
    flags = (
        "--set",
        "listeners.http.plain=true",
        "--set",
        "listeners.http.anonymous=true",
        "--set",
        "listeners.http.port=0",
        "--set",
        "listeners.kafka.port=0",
    )
    code, findings = examined(tmp_path / "home", *flags)
    assert code == 0
    assert [text.split(":")[0] for text in of(findings, "listeners")] == ["warning", "warning", "ok"]


@pytest.fixture
def stopped(node: Node, tmp_path: Path) -> Path:
    """A copy of a node's home, of which nothing runs."""
    import shutil

    home = tmp_path / "home"
    shutil.copytree(node.home, home, ignore=shutil.ignore_patterns("LOCK"))
    (home / "cli.json").unlink()
    return home


def test_a_key_file_that_others_may_read(stopped: Path) -> None:
    os.chmod(stopped / "certs" / "server-key.pem", 0o644)
    code, findings = examined(stopped)
    assert code == 1
    assert any("0644" in text for text in of(findings, "certificate"))


def test_keys_that_are_gone(stopped: Path) -> None:
    (stopped / "keys" / "kek.json").unlink()
    code, findings = examined(stopped)
    assert code == 1
    assert of(findings, "keys")[0].startswith("problem:")


def test_a_clock_behind_the_data(stopped: Path) -> None:
    newest = next(path for path in (stopped / "data").glob("**/*") if path.is_file())
    os.utime(newest, (4_000_000_000, 4_000_000_000))
    code, findings = examined(stopped)
    assert code == 1
    assert "in the future" in of(findings, "clock")[0]


def test_a_certificate_that_is_none(stopped: Path) -> None:
    (stopped / "certs" / "server.pem").write_text("no certificate")
    code, findings = examined(stopped)
    assert code == 1
    assert of(findings, "certificate")[0].startswith("problem:")
