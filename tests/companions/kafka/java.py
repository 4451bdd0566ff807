"""Programs of Apache Kafka's jars, each in a JVM of its own: `make setup-kafka` has put the jars where they are looked for."""

from __future__ import annotations

import os
import struct
import subprocess
import threading
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "build" / "kafka"
VERSION = "4.3.1"
HEAP_MIB = 256  # of a tool; the broker's own is in apache.py
TOOL_TIMEOUT_S = 90


def java_command(main: str, *arguments: str, heap_mib: int = HEAP_MIB) -> list[str]:
    """The command line of class `main`; RuntimeError that says what to do if the jars are not there."""
    if not (FOLDER / ".ready").exists():
        raise RuntimeError(f"no jars of Apache Kafka {VERSION} in {FOLDER}: run `make setup-kafka`")
    # Tools live for seconds: the first compiler only, and a collector without threads of its own.
    quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"] if heap_mib <= HEAP_MIB else []
    classes = f"{FOLDER / 'classes'}{os.pathsep}{FOLDER / 'lib' / '*'}"
    return ["java", f"-Xmx{heap_mib}m", *quick, "-cp", classes, main, *arguments]


def run_java(main: str, *arguments: str, stdin: str = "", timeout_s: float = TOOL_TIMEOUT_S) -> str:
    """What `main` printed; AssertionError with all it said if it did not end well."""
    command = java_command(main, *arguments)
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{main} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


class JavaTools:
    """One JVM (Tools.java) that runs tools one after the other: the first costs its start, the others a tenth of that."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            java_command("Tools"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def run(self, main: str, *arguments: str, stdin: str = "", timeout_s: float = TOOL_TIMEOUT_S) -> str:
        """What `main` printed; AssertionError with it if the exit code is not 0. At the timeout the JVM is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        texts = [text.encode() for text in (main, stdin, *arguments)]
        asked = struct.pack(">i", len(texts)) + b"".join(struct.pack(">i", len(text)) + text for text in texts)
        watch = threading.Timer(timeout_s, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(asked)
            self._process.stdin.flush()
            head = self._process.stdout.read(8)
            assert len(head) == 8, f"the JVM ended in {main} {arguments}"
            code, size = struct.unpack(">ii", head)
            said = self._process.stdout.read(size).decode(errors="replace")
        finally:
            watch.cancel()
        assert code == 0, f"{main} {arguments} ended with {code}:\n{said[-6000:]}"
        return said

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
