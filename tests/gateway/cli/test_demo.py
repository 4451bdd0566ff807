"""The demo, whole: readings through a real node, and its files looked at from outside."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from broker.log.layout import BATCH_MAGIC
from gateway.cli.local_node import local_node
from gateway.cli.main import main
from gateway.cli.profile import load_profile

pytestmark = pytest.mark.services

Home = Callable[[Path], Path]


def demo(home: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["demo", "--home", str(home), "--seconds", "1", *arguments])


def test_it_starts_a_node_shows_readings_and_the_sealed_record_and_stops_it(tmp_path: Path, home_of: Home) -> None:
    home = home_of(tmp_path / "home")
    done = demo(home, "--json")
    assert done.exit_code == 0, done.output
    *arrivals, facts = (json.loads(line) for line in done.stdout.splitlines())
    assert {record["key"] for record in arrivals} >= {"cpu", "cpu/0", "memory", "disk", "network"}
    assert facts["published"] == facts["arrived"] == len(arrivals)

    sealed = facts["sealed_batch"]
    lying = Path(sealed["file"]).read_bytes()[sealed["position"] : sealed["position"] + sealed["bytes"]]
    assert lying.hex() == sealed["hex"]
    assert lying.startswith(BATCH_MAGIC)
    assert sealed["base_offset"] <= facts["clear_record"]["offset"] < sealed["base_offset"] + sealed["records"]

    marker = facts["marker"].encode()
    assert marker in json.dumps(facts["clear_record"]).encode()
    assert facts["marker_in_clear"] == []
    assert facts["control_found_in_files"] >= 1
    assert not [path for path in home.rglob("*") if path.is_file() and marker in path.read_bytes()]

    profile = load_profile(home)
    assert profile is not None
    assert CliRunner().invoke(main, ["topics", "list", "--home", str(home)]).exit_code == 3  # its node is stopped


def test_it_uses_the_node_that_runs_and_leaves_it_running(tmp_path: Path, home_of: Home) -> None:
    home = home_of(tmp_path / "home")
    with local_node(home):
        done = demo(home)
        assert done.exit_code == 0, done.output
        assert "using the node that runs" in done.stderr
        assert "53 50 42 31" in done.stdout
        assert "found nowhere" in done.stdout
        assert CliRunner().invoke(main, ["topics", "list", "--home", str(home)]).exit_code == 0
