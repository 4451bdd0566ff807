"""The node of a home folder on this machine: the one that runs, or one started for as long as it is needed."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from gateway.cli.client import Client
from gateway.cli.connection import resolve_connection
from gateway.cli.failures import Failure, Unreachable, Unusable
from gateway.cli.profile import Profile, load_profile

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
STDERR_LINES_SHOWN = 3


@contextmanager
def local_node(home: Path) -> Iterator[tuple[Profile, bool]]:
    """The node's profile, and whether it was started here; then it is stopped at the end."""
    profile = load_profile(home)
    if profile is not None and _answers(home):
        yield profile, False
        return
    with _started(home):
        profile = load_profile(home)
        if profile is None:
            raise Unusable(f"the node in {home} left no profile", what_to_do="see whether this user may write there")
        yield profile, True


def _answers(home: Path) -> bool:
    with Client(resolve_connection(None, None, None, None, None, home)) as client:
        try:
            client.call("GET", "/livez")
        except Unreachable:
            return False
    return True


@contextmanager
def _started(home: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "gateway.cli.main", "serve", "--home", str(home), "--json"]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:  # noqa: S603  our own command
        before = signal.signal(signal.SIGTERM, _leave)
        try:
            _await_start(process, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
            signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    """By way of the `finally` above, so that a node started here does not stay behind."""
    sys.exit(128 + number)


def _await_start(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Its one line on stdout says that it listens; the end of stdout, that it does not."""
    lines: queue.Queue[bytes] = queue.Queue(1)
    assert process.stdout is not None
    threading.Thread(target=lambda: lines.put(process.stdout.readline()), name="node-start", daemon=True).start()  # type: ignore[union-attr]
    try:
        line = lines.get(timeout=START_TIMEOUT_S)
    except queue.Empty:
        raise Unusable("the node did not start", f"it said nothing for {START_TIMEOUT_S:.0f} s") from None
    if not line:
        raise _not_started(log)


def _not_started(log: IO[bytes]) -> Failure:
    """Its own words: the error that `--json` printed last, else the end of its log."""
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    for line in reversed(lines):
        try:
            error: Any = json.loads(line)["error"]
            return Unusable(error["title"], error.get("detail", ""), error.get("what_to_do", ""))
        except (ValueError, KeyError, TypeError):
            continue
    return Unusable("the node did not start", " | ".join(lines[-STDERR_LINES_SHOWN:]))
