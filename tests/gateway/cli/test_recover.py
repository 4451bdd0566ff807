"""An admin token for whoever owns the node's files."""

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from gateway.cli.main import main
from tests.gateway.cli.conftest import Node


def test_a_running_node_takes_it_and_the_audit_trail_tells(node: Node, tmp_path: Path) -> None:
    out = tmp_path / "admin.token"
    (made,) = node.rows("tokens", "recover", "--out", str(out))
    assert "token" not in made
    assert out.stat().st_mode & 0o777 == 0o600
    for _ in range(100):  # the node looks at the file every tokens.reload_ms
        listed = node.call("tokens", "list", "--json", "--token-file", str(out))
        if listed.exit_code == 0:
            break
    assert listed.exit_code == 0, listed.output
    trail = [json.loads(line) for line in (node.home / "audit.jsonl").read_text().splitlines()]
    assert [line for line in trail if line["resource"] == f"token {made['id']}" and "recovered by user" in line["reason"]]


def test_its_secret_is_in_no_file_of_the_node(node: Node) -> None:
    (made,) = node.rows("tokens", "recover", "--ttl", "5m")
    secret = made["token"].split("_", 2)[2].encode()  # which may hold an underscore itself
    assert not [path for path in node.home.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert made["expires_at_ms"]


def test_without_a_node_nothing_is_made(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["tokens", "recover", "--home", str(tmp_path / "none"), "--json"])
    assert result.exit_code == 2
    assert not (tmp_path / "none").exists()


def test_the_secret_is_no_argument(node: Node) -> None:
    """Of this process or any other: arguments are public."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "tokens", "recover", "--help"], capture_output=True, text=True, check=True
    )
    assert "--token " not in done.stdout
