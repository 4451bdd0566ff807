"""A real Apache Kafka, one node in KRaft mode, to be compared with.

with ApacheKafka(folder) as kafka: ... kafka.bootstrap ...
python -m tests.companions.kafka.apache [--home FOLDER] [--set name=value ...]    (runs until it is interrupted)
"""

from __future__ import annotations

import argparse
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from tests.companions.kafka.java import java_command, run_java

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 60
HEAP_MIB = 512
# ApiVersions v0, correlation id 1, client id null: the first thing a started broker answers.
API_VERSIONS = struct.pack(">hhih", 18, 0, 1, -1)
# One node, so one copy of everything; one partition of each internal topic and no wait for a first member: tests are short.
# Groups of KIP-848 are assigned when they ask, not in the background once a second (KIP-1263): answers are alike each time.
SMALL = {
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.consumer.assignor.offload.enable": "false",
    "group.consumer.assignment.interval.ms": "0",
    "group.consumer.min.assignment.interval.ms": "0",
}


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class ApacheKafka:
    """`start`, `stop` and `kill` as often as wanted on one port; `settings` are server.properties, dots written as they are."""

    def __init__(self, home: Path, settings: dict[str, str] | None = None, *, heap_mib: int = HEAP_MIB) -> None:
        self.home = home
        self.log = home / "broker.log"
        self._port, self._controller_port = free_ports(2)
        self._settings = settings or {}
        self._heap_mib = heap_mib
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def process(self) -> psutil.Process:
        """For its CPU time and memory."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def start(self) -> None:
        properties = self.home / "server.properties"
        if not properties.exists():
            self.home.mkdir(parents=True, exist_ok=True)
            properties.write_text("".join(f"{name}={value}\n" for name, value in self._properties().items()))
            cluster = run_java("kafka.tools.StorageTool", "random-uuid").strip().splitlines()[-1]
            run_java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties))
        with self.log.open("ab") as log:
            command = java_command("kafka.Kafka", str(properties), heap_mib=self._heap_mib)
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._await_answer(time.monotonic() + START_TIMEOUT_S)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def __enter__(self) -> ApacheKafka:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    def _properties(self) -> dict[str, str]:
        listener, controller = f"PLAINTEXT://{self.bootstrap}", f"127.0.0.1:{self._controller_port}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"{listener},CONTROLLER://{controller}",
            "advertised.listeners": listener,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.home / "data"),
            **SMALL,
            **self._settings,
        }

    def _await_answer(self, deadline: float) -> None:
        assert self._process is not None
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Apache Kafka did not start:\n{self.log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=5) as client:
                client.sendall(struct.pack(">i", len(API_VERSIONS)) + API_VERSIONS)
                return len(client.recv(64)) > 0
        except OSError:
            return False

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None


def main() -> None:
    parser = argparse.ArgumentParser(description="An Apache Kafka of its own until it is interrupted")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    chosen = parser.parse_args()
    settings = dict(item.split("=", 1) for item in chosen.set)
    with tempfile.TemporaryDirectory() as temporary, ApacheKafka(chosen.home or Path(temporary), settings) as kafka:
        ends = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # after the start: a JVM that inherited this could not be stopped
        print(kafka.bootstrap, kafka.process.pid, flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
