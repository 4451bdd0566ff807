"""Every guide's snippets, run in their order as they stand there, against a real node.

`sh` blocks run with `bash -e`, `python` blocks with this interpreter, `json` blocks have to parse; others are to be read only.
Only the port and the place of `.venv` are put in. A page gets a node of its own.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.local_node import local_node

GUIDES = sorted((Path(__file__).resolve().parents[2] / "docs" / "guide").glob("*.md"))
BLOCK = re.compile(r"^```(sh|python|json)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES_URL = "https://127.0.0.1:8443"
TIMEOUT_S = 60

pytestmark = pytest.mark.services


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A working folder whose `.sprawl` is the home of a running node, and the node's URL."""
    (tmp_path / ".sprawl").mkdir(mode=0o700)
    (tmp_path / ".sprawl" / "sprawl.toml").write_text("[listeners.http]\nport = 0\n[listeners.kafka]\nport = 0\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    with local_node(tmp_path / ".sprawl") as (profile, _):
        yield tmp_path, profile.url


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_snippets_of_a_guide_run(guide: Path, folder: tuple[Path, str]) -> None:
    home, url = folder
    blocks = BLOCK.findall(guide.read_text())
    assert blocks, "a guide without a snippet proves nothing"
    for language, body in blocks:
        if language == "json":
            json.loads(body)
            continue
        script = body.replace(PAGES_URL, url).replace(PAGES_URL.replace("https", "wss"), url.replace("https", "wss"))
        command = ["bash", "-eo", "pipefail", "-c", script] if language == "sh" else [sys.executable, "-c", script]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SPRAWL_")}
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=TIMEOUT_S, env=environ)
        assert done.returncode == 0, (body, done.stdout[-2000:], done.stderr[-2000:])
