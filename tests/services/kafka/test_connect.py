"""A Kafka Connect 4.3.1 standalone worker: lines of one file become records, and records lines of another file."""

from __future__ import annotations

import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from tests.companions.kafka.apache import free_ports
from tests.companions.kafka.java import FOLDER, VERSION, java_command
from tests.services.kafka.bootstrap import Bootstrap, write_properties

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

WAIT_S = 90
LINES = [f"line {number} of the file" for number in range(200)]
FILE = "org.apache.kafka.connect.file.FileStream"


def worker(bootstrap: Bootstrap, folder: Path) -> Path:
    """The worker's own settings. One folder with the connector's jar: the worker need not look through all others."""
    plugins = folder / "plugins"
    plugins.mkdir()
    shutil.copy(FOLDER / "lib" / f"connect-file-{VERSION}.jar", plugins)
    converter = "org.apache.kafka.connect.storage.StringConverter"
    settings = bootstrap.java(
        key_converter=converter,
        value_converter=converter,
        offset_storage_file_filename=folder / "offsets",
        offset_flush_interval_ms=500,
        plugin_path=plugins,
        plugin_discovery="service_load",
        listeners=f"http://127.0.0.1:{free_ports(1)[0]}",
    )
    settings |= bootstrap.java_security("producer.") | bootstrap.java_security("consumer.") | bootstrap.java_security("admin.")
    return write_properties(folder / "worker.properties", settings)


def test_a_file_becomes_a_topic_and_the_topic_a_file(bootstrap: Bootstrap, tmp_path: Path) -> None:
    topic = f"connect-{uuid.uuid4().hex[:8]}"
    source, sink = tmp_path / "source.txt", tmp_path / "sink.txt"
    source.write_text("".join(f"{line}\n" for line in LINES[:100]))
    files = [
        write_properties(
            tmp_path / "source.properties",
            {
                "name": "source",
                "connector.class": f"{FILE}SourceConnector",
                "file": str(source),
                "topic": topic,
                "tasks.max": "1",
            },
        ),
        write_properties(
            tmp_path / "sink.properties",
            {
                "name": f"{topic}-sink",
                "connector.class": f"{FILE}SinkConnector",
                "file": str(sink),
                "topics": topic,
                "tasks.max": "1",
            },
        ),
    ]
    main = "org.apache.kafka.connect.cli.ConnectStandalone"
    command = java_command(main, str(worker(bootstrap, tmp_path)), *(str(path) for path in files))
    log_path = tmp_path / "connect.log"
    with log_path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path) as connect:
        try:
            await_lines(sink, LINES[:100], connect, log_path)
            with source.open("a") as file:
                file.writelines(f"{line}\n" for line in LINES[100:])
            await_lines(sink, LINES, connect, log_path)
        finally:
            connect.kill()


def await_lines(sink: Path, wanted: list[str], connect: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    found: list[str] = []
    while sorted(found) != sorted(wanted):
        assert time.monotonic() < deadline, f"{len(found)} lines came\n{log.read_text()[-4000:]}"
        assert connect.poll() is None, log.read_text()[-4000:]
        time.sleep(0.2)
        found = sink.read_text().splitlines() if sink.exists() else []
