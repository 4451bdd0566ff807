"""A node as users start one, and the verbs as users call them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli.local_node import local_node
from gateway.cli.main import main
from gateway.cli.profile import Profile


@dataclass(frozen=True)
class Node:
    """A running node, reached by its home. `home` holds its profile."""

    home: Path
    profile: Profile

    def call(self, *arguments: str, stdin: bytes | None = None, **environment: str) -> Result:
        runner = CliRunner(
            env={"SPRAWL_HOME": str(self.home), "SPRAWL_TOKEN": None, "SPRAWL_URL": None, "SPRAWL_CA": None, **environment}
        )
        return runner.invoke(main, list(arguments), input=stdin)

    def ok(self, *arguments: str, stdin: bytes | None = None) -> str:
        result = self.call(*arguments, stdin=stdin)
        assert result.exit_code == 0, (arguments, result.output)
        return result.stdout

    def rows(self, *arguments: str, stdin: bytes | None = None) -> list[Any]:
        """What `--json` prints, parsed."""
        return [json.loads(line) for line in self.ok(*arguments, "--json", stdin=stdin).splitlines()]

    def read(self, address: str) -> list[Any]:
        return self.rows("subscribe", address, "--from", "beginning", "--no-follow")


def new_home(folder: Path) -> Path:
    """On a free port, whatever else runs on this machine."""
    folder.mkdir(mode=0o700)
    (folder / "sprawl.toml").write_text("[listeners.http]\nport = 0\n[listeners.kafka]\nport = 0\n")
    return folder


@pytest.fixture(autouse=True)
def nothing_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SPRAWL_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One for all tests of the session: each uses topics of its own."""
    home = new_home(tmp_path_factory.mktemp("cli") / "home")
    with local_node(home) as (profile, _):
        yield Node(home, profile)


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic name of the test's own."""
    return "".join(character if character.isalnum() else "-" for character in request.node.name)[:100]


@pytest.fixture
def home_of() -> Callable[[Path], Path]:
    return new_home
