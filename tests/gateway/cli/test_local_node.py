"""The node of a home: found, started, stopped, and its refusal to start handed on."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.cli.failures import Unusable
from gateway.cli.local_node import local_node

pytestmark = pytest.mark.services


def test_what_kept_it_from_starting_is_told_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "sprawl.toml").write_text("[log]\ndurability = 'maybe'\n")
    with pytest.raises(Unusable, match="configuration") as refusal, local_node(tmp_path):
        pass
    assert "log.durability" in refusal.value.detail


def test_a_demo_that_is_terminated_takes_its_node_along(tmp_path: Path, home_of: Callable[[Path], Path]) -> None:
    home = home_of(tmp_path / "home")
    command = [sys.executable, "-m", "gateway.cli.main", "demo", "--home", str(home), "--seconds", "60", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        json.loads(process.stdout.readline())  # readings arrive: its node runs
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    with local_node(home) as (_, started_here):  # the folder is free again
        assert started_here
