"""A node in a process of its own, on one port for all its lives, to be killed and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

from gateway.cli.profile import Profile, load_profile

STOP_TIMEOUT_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NodeProcess:
    """`start`, `kill` and `stop` as often as wanted; what it logs is kept in `<home>.log`."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.home = home
        self.log = home.with_suffix(".log")
        self.starts = 0
        self._settings = {"listeners.http.port": free_port(), "listeners.kafka.port": 0, **settings}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "gateway.cli.main", "serve", "--home", str(self.home), "--json"]
        for name, value in self._settings.items():
            command += ["--set", f"{name}={value}"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SPRAWL_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environ)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the node did not start:\n{self.log.read_text()[-2000:]}")
        self.facts = json.loads(line)
        self.starts += 1

    @property
    def profile(self) -> Profile:
        found = load_profile(self.home)
        assert found is not None
        return found

    @property
    def url(self) -> str:
        return self.profile.url

    @property
    def token(self) -> str:
        assert self.profile.token is not None
        return self.profile.token

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.profile.ca))

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is told to anybody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> int:
        """SIGTERM: an ordered drain; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._reap()

    def _reap(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        code = self._process.wait(STOP_TIMEOUT_S)
        self._process.stdout.close()
        self._process = None
        return code

    @property
    def running(self) -> bool:
        return self._process is not None

    def __enter__(self) -> NodeProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()
