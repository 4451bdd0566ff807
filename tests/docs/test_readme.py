"""The README's lines, run as they stand there against a real node: only the port and the place of `.venv` are put in."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.local_node import local_node

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, flags=re.DOTALL)
README_URL = "https://127.0.0.1:8443"
TIMEOUT_S = 30
AMOUNTS = (12, 13, 14)

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(shutil.which("curl") is None, reason="the README's lines need curl"),
]


def block_after(text: str) -> list[str]:
    """The lines of the first block after a sentence."""
    found = re.search(re.escape(text) + r".*?```(?:sh|python)\n(.*?)```", README, flags=re.DOTALL)
    assert found, text
    return found.group(1).strip().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A working folder with a running node in `.sprawl`, where the README's topic is made, and the node's URL."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / ".sprawl").mkdir(mode=0o700)
    (folder / ".sprawl" / "sprawl.toml").write_text("[listeners.http]\nport = 0\n[listeners.kafka]\nport = 0\n")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    with local_node(folder / ".sprawl") as (profile, _):
        for line in block_after("make a topic"):
            run(line, folder, profile.url)
        yield folder, profile.url


def start(line: str, folder: Path, url: str) -> subprocess.Popen[str]:
    command = line.replace(README_URL, url)
    return subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(line: str, folder: Path, url: str) -> str:
    """What a line prints that ends by itself, and ends well."""
    process = start(line, folder, url)
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, (line, out, err)
    return out


def read_amounts(process: subprocess.Popen[str]) -> list[int]:
    """Those of AMOUNTS that a follower prints, in its order, until it has all of them; the test's own timeout bounds it."""
    assert process.stdout is not None
    amounts: list[int] = []
    while not set(AMOUNTS) <= set(amounts):
        line = process.stdout.readline()
        assert line, (amounts, process.stderr and process.stderr.read())
        amounts += [amount for amount in map(int, re.findall(r'"amount":\s*(\d+)', line)) if amount in AMOUNTS]
    return amounts


def test_what_is_published_over_each_protocol_arrives_over_the_others(folder: tuple[Path, str]) -> None:
    followers = [start(line, *folder) for line in block_after("Listen to it")]
    try:
        for line in block_after("Publish over REST"):
            assert run(line, *folder)
        script = "\n".join(block_after("Publish over WebSocket"))
        done = subprocess.run([sys.executable, "-c", script], cwd=folder[0], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert '"op":"ack"' in done.stdout, done
        assert [read_amounts(follower) for follower in followers] == [[*AMOUNTS]] * 2
    finally:
        for follower in followers:
            follower.kill()
            follower.communicate()

    latest, history = block_after("And read what an address holds now")
    assert json.loads(run(latest, *folder)) == {"amount": 14}
    assert [json.loads(line)["value"] for line in run(history, *folder).splitlines()] == [
        {"amount": amount} for amount in AMOUNTS
    ]


def test_a_token_that_can_do_less(folder: tuple[Path, str]) -> None:
    create, publish, tokens = block_after("For anybody else make a token")
    run(create, *folder)
    assert (folder[0] / ".sprawl" / "till-7.token").stat().st_mode & 0o777 == 0o600
    assert "orders" in run(publish, *folder)
    assert "till-7" in run(tokens, *folder)
    refused = start(publish.replace("eu/8", "us/8"), *folder)
    out, err = refused.communicate(timeout=TIMEOUT_S)
    assert (refused.returncode, out) == (1, "")
    assert "Not allowed" in err


def test_every_block_is_run_or_is_about_make() -> None:
    run_here = (
        "make a topic",
        "Listen to it",
        "Publish over REST",
        "Publish over WebSocket",
        "And read what",
        "For anybody else",
    )
    tested = {"\n".join(block_after(sentence)) for sentence in run_here}
    assert [body for _, body in BLOCKS if body.strip() not in tested and not body.startswith("make run")] == []
