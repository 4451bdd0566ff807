"""franz-go and sarama: their referee produces, transacts, reads in a group of two, administers, and says what it saw."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.services.kafka.bootstrap import USER, Bootstrap

# The campaign's: they need a Go that no distribution of the day ships.
pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(120)]

REFEREE = Path(__file__).resolve().parents[3] / "build" / "clients" / "referee"
RECORDS = 200


@pytest.mark.parametrize("client", ["franz-go", "sarama"])
def test_it_reads_what_it_committed_and_nothing_that_it_aborted(bootstrap: Bootstrap, client: str) -> None:
    topic = f"{client}-{uuid.uuid4().hex[:8]}"
    facts = {"Address": bootstrap.address, "User": USER, "Token": bootstrap.token, "CA": str(bootstrap.ca), "Topic": topic}
    done = subprocess.run([str(REFEREE), client, json.dumps(facts)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    saw = json.loads(done.stdout)
    produced = {f"{codec}-{number}" for codec in range(5) for number in range(RECORDS // 5)}
    assert set(saw["seen"]) == produced | {"commit"}
    assert saw["end"] == RECORDS + 4  # a record and a marker for each of the two transactions
    assert RECORDS < saw["committed"] <= saw["end"]
    assert saw["listed"]
    assert saw["deleted"]
