"""kafkajs: its referee produces, transacts, reads in a group of two, administers, and says what it saw."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.services.kafka.bootstrap import USER, Bootstrap

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

ROOT = Path(__file__).resolve().parents[3]
REFEREE = ROOT / "tests" / "companions" / "kafkajs" / "referee.js"
MODULES = ROOT / "build" / "clients" / "node_modules"
RECORDS = 200


def test_kafkajs_reads_what_it_committed_and_nothing_that_it_aborted(bootstrap: Bootstrap) -> None:
    topic = f"kafkajs-{uuid.uuid4().hex[:8]}"
    facts = {"address": bootstrap.address, "user": USER, "token": bootstrap.token, "ca": str(bootstrap.ca), "topic": topic}
    command = ["node", str(REFEREE), json.dumps(facts)]
    environ = os.environ | {"NODE_PATH": str(MODULES), "KAFKAJS_NO_PARTITIONER_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
    assert done.returncode == 0, done.stderr
    saw = json.loads(done.stdout)
    produced = {f"{codec}-{number}" for codec in (0, 1) for number in range(RECORDS // 2)}
    assert set(saw["seen"]) == produced | {"commit"}
    assert saw["end"] == RECORDS + 4  # a record and a marker for each of the two transactions
    assert RECORDS < saw["committed"] <= saw["end"]
    assert saw["listed"]
    assert saw["deleted"]
