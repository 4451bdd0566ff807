"""Starting a node: what its first screen says, what it refuses to start with, how it stops."""

import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli.main import main
from gateway.cli.profile import load_profile

pytestmark = pytest.mark.services

SERVE = [sys.executable, "-m", "gateway.cli.main", "serve"]
TOKEN = re.compile(r"sprawl_[a-z2-7]{12}_[A-Za-z0-9_-]{43}")
WAIT_S = 60

Home = Callable[[Path], Path]


class Terminal:
    """A node whose stdout is a terminal, as a person has it; stderr goes to a file."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.screen = ""
        self.log = home.parent / "stderr"
        self._master, slave = pty.openpty()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*SERVE, "--home", str(home), *arguments], stdout=slave, stderr=log)
        os.close(slave)

    def read_until(self, text: str) -> str:
        while text not in self.screen:
            ready, _, _ = select.select([self._master], [], [], WAIT_S)
            assert ready, (self.screen, self.log.read_text())
            try:
                chunk = os.read(self._master, 65536)
            except OSError:  # EIO: the node has closed its side
                chunk = b""
            assert chunk, (self.screen, self.log.read_text())
            self.screen += chunk.decode()
        return re.sub(r"\x1b\[[0-9;]*m", "", self.screen)

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            os.close(self._master)


def run_once(home: Path, *arguments: str) -> tuple[dict[str, Any], str, str, int]:
    """Started with `--json` and stopped: its facts, the rest of stdout, stderr, exit code."""
    process = subprocess.Popen(
        [*SERVE, "--home", str(home), *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.terminate()
        out, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    assert first, err
    return json.loads(first), out, err, process.returncode


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("serve") / "home"
    terminal = Terminal(home, "--set", "listeners.http.port=0", "--set", "listeners.kafka.port=0")
    text = terminal.read_until("Ctrl-C")
    code = terminal.stop(signal.SIGINT)
    return {"text": text, "home": home, "code": code, "log": terminal.log.read_text()}


class TestTheFirstScreen:
    def test_says_where_it_listens_and_where_everything_lies(self, screen: dict[str, Any]) -> None:
        assert re.search(r"https://127\.0\.0\.1:\d+", screen["text"])
        for name in ("data", "keys", "audit", "cli.json"):
            assert f"{screen['home']}/{name}" in screen["text"]

    def test_shows_the_admin_token_once_and_keeps_it_in_a_private_profile(self, screen: dict[str, Any]) -> None:
        (token,) = set(TOKEN.findall(screen["text"]))
        profile = load_profile(screen["home"])
        assert profile is not None
        assert profile.token == token
        assert "shown once" in screen["text"]
        assert token not in screen["log"]
        holders = [path for path in screen["home"].rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
        assert {path.name for path in holders} == {"cli.json", "authorization", "kafka.properties", "librdkafka.conf"}
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in holders)

    def test_has_three_lines_to_copy(self, screen: dict[str, Any]) -> None:
        for part in ("subscribe orders", "publish orders/eu/7", "curl --cacert"):
            assert part in screen["text"]

    def test_ctrl_c_ends_it_well(self, screen: dict[str, Any]) -> None:
        assert screen["code"] == 0


def test_a_second_start_has_the_same_token_and_shows_none(screen: dict[str, Any]) -> None:
    before = load_profile(screen["home"])
    terminal = Terminal(screen["home"], "--set", "listeners.http.port=0", "--set", "listeners.kafka.port=0")
    text = terminal.read_until("Ctrl-C")
    assert terminal.stop(signal.SIGTERM) == 0
    after = load_profile(screen["home"])
    assert before is not None
    assert after is not None
    assert before.token == after.token
    assert after.url in text
    assert not TOKEN.search(text)
    assert "from the first start" in text


def test_a_redirected_screen_holds_no_secret(tmp_path: Path, home_of: Home) -> None:
    home = home_of(tmp_path / "home")
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen([*SERVE, "--home", str(home)], stdout=out, stderr=err)
        try:
            while "Ctrl-C" not in (tmp_path / "out").read_text():
                assert process.poll() is None, (tmp_path / "err").read_text()
                select.select([], [], [], 0.02)
            process.terminate()
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
    text = (tmp_path / "out").read_text() + (tmp_path / "err").read_text()
    assert not TOKEN.search(text)
    assert "cli.json" in text


def test_json_is_one_object_without_a_secret(tmp_path: Path, home_of: Home) -> None:
    home = home_of(tmp_path / "home")
    facts, rest, err, code = run_once(home)
    assert (rest, code, facts["first_start"]) == ("", 0, True)
    assert facts["url"].startswith("https://127.0.0.1:")
    assert {Path(facts[name]).exists() for name in ("home", "data", "keys", "ca", "profile")} == {True}
    assert not TOKEN.search(json.dumps(facts) + err)


class TestRefusalsToStart:
    def refused(self, *arguments: str) -> str:
        done = subprocess.run([*SERVE, *arguments], capture_output=True, text=True, timeout=WAIT_S)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert "Traceback" not in done.stderr
        return done.stderr

    def test_two_nodes_on_one_home(self, node: Any) -> None:
        assert "another" in self.refused("--home", str(node.home)).lower()

    def test_a_port_that_is_taken(self, node: Any, tmp_path: Path) -> None:
        port = node.profile.url.rpartition(":")[2]
        said = self.refused(
            "--home", str(tmp_path / "home"), "--set", f"listeners.http.port={port}", "--set", "listeners.kafka.port=0"
        )
        assert "listeners.http.port" in said

    def test_a_missing_key_is_named(self, tmp_path: Path, home_of: Home) -> None:
        home = home_of(tmp_path / "home")
        facts, *_ = run_once(home)
        for path in Path(facts["keys"]).iterdir():
            path.rename(tmp_path / path.name)
        assert "key" in self.refused("--home", str(home))

    def test_an_unknown_setting_names_the_nearest(self, tmp_path: Path) -> None:
        assert "log.durability" in self.refused("--home", str(tmp_path), "--set", "log.durabilty=os")

    def test_a_setting_without_value(self, tmp_path: Path) -> None:
        assert "SECTION.KEY=VALUE" in self.refused("--home", str(tmp_path), "--set", "log.durability")

    def test_a_missing_config_file(self, tmp_path: Path) -> None:
        assert "missing.toml" in self.refused("--home", str(tmp_path), "--config", str(tmp_path / "missing.toml"))

    def test_json_says_it_in_json(self, tmp_path: Path) -> None:
        error = json.loads(self.refused("--home", str(tmp_path), "--set", "log.durability=maybe", "--json"))["error"]
        assert error["exit_code"] == 2
        assert "log.durability" in error["detail"]


def test_print_config_is_toml_and_starts_nothing(tmp_path: Path) -> None:
    arguments = ["serve", "--home", str(tmp_path / "home"), "--set", "listeners.http.port=9443", "--print-config"]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0
    config = tomllib.loads(shown.output)
    assert config["listeners"]["http"]["port"] == 9443
    assert not (tmp_path / "home").exists()
