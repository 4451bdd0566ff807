"""`sprawl log verify|repair`, as an operator calls them on the home of a node that is stopped."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from broker.batch import build
from broker.engine.base import Append
from broker.engine.embedded import LOCK_PATH, EmbeddedEngine
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.layout import FILE_HEADER_BYTES
from broker.machine import MachineDisk, MachineSeams
from gateway.cli.main import main
from security.crypto.keystore import KeyStore
from security.crypto.kms import KEK_FILE, LocalFileKms
from tests.gateway.cli.conftest import Node


async def _write(home: Path) -> None:
    (home / "keys").mkdir(parents=True)
    kms = LocalFileKms.create(home / "keys" / KEK_FILE)
    seams = MachineSeams(home / "data")
    engine = EmbeddedEngine(seams, KeyStore(KeyStoreBlob(MachineDisk(home / "keys")), kms, os.urandom))
    for _ in range(2):  # the second start seals the first one's journal in place
        await engine.start()
        if not engine.topics():
            await engine.create_topic("orders", 1, {})
        for n in range(5):
            await engine.append([Append("orders", 0, build([(n, b"k", b"value %d" % n, ())]), [b"k"])])
        await engine.close()
        engine = EmbeddedEngine(seams, KeyStore(KeyStoreBlob(MachineDisk(home / "keys")), kms, os.urandom))
    seams.executor.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    asyncio.run(_write(tmp_path / "home"))
    return tmp_path / "home"


def call(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["log", *arguments, "--home", str(home)])


def facts(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def sealed_journal(home: Path) -> Path:
    return min((home / "data" / "journal").iterdir())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_a_whole_log(home: Path) -> None:
    result = call(home, "verify", "--json")
    assert result.exit_code == 0, result.output
    found = facts(result)
    assert found["whole"]
    assert sum(file["batches"] for file in found["files"]) == 10
    shown = call(home, "verify")
    assert shown.exit_code == 0
    assert "\nwhole: " in shown.stdout
    assert "0 things" not in call(home, "repair").stdout


def test_a_lost_batch_is_named_by_file_bytes_and_offsets_then_put_on_record(home: Path) -> None:
    path = sealed_journal(home)
    at = path.read_bytes().index(b"SPB1") + 140
    flip(path, at)
    result = call(home, "verify", "--json")
    assert result.exit_code == 1
    found = facts(result)
    assert not found["whole"]
    (lost,) = [finding for finding in found["findings"] if finding["severity"] == "lost"]
    assert lost["path"] == f"journal/{path.name}"
    assert lost["start"] <= at < lost["end"]
    assert (lost["topic"], lost["partition"], lost["from_offset"], lost["to_offset"]) == ("orders", 0, 0, 1)

    before = path.read_bytes()
    planned = call(home, "repair", "--dry-run", "--json")
    assert planned.exit_code == 1
    assert path.read_bytes() == before
    done = call(home, "repair", "--json")
    assert done.exit_code == 0, done.output
    assert facts(done)["actions"] == facts(planned)["actions"]
    (kept,) = (home / "data" / "quarantine").iterdir()
    assert kept.read_bytes() == before[lost["start"] : lost["end"]]
    assert kept.stat().st_mode & 0o777 == 0o600
    again = call(home, "verify", "--json")
    assert again.exit_code == 0
    assert facts(again)["counts"]["quarantined"] == 1
    assert "nothing to mend" in call(home, "repair").stdout


def test_damage_is_shown_to_people_with_what_to_do(home: Path) -> None:
    flip(home / "data" / "manifest.a", 70)
    flip(sealed_journal(home), FILE_HEADER_BYTES + 700)
    shown = call(home, "verify")
    assert shown.exit_code == 1
    assert "mendable: manifest.a: manifest: does not authenticate" in shown.stdout
    assert "NOT whole" in shown.stdout
    assert "sprawl log repair --dry-run" in shown.stderr
    assert "would be done" in call(home, "repair", "--dry-run").stdout
    assert call(home, "repair").exit_code == 0
    assert call(home, "verify").exit_code == 0


def test_both_copies_of_the_key_store_are_looked_at(home: Path) -> None:
    flip(home / "keys" / "keystore.b", 40)
    before = (home / "keys" / "keystore.b").read_bytes()
    result = call(home, "verify", "--json")
    assert result.exit_code == 1
    assert [finding["what"] for finding in facts(result)["findings"] if finding["severity"] == "mendable"] == ["key store"]
    assert (home / "keys" / "keystore.b").read_bytes() == before
    assert call(home, "repair").exit_code == 0
    assert (home / "keys" / "keystore.b").read_bytes() == (home / "keys" / "keystore.a").read_bytes()


def test_a_running_node_is_refused_by_name(node: Node) -> None:
    for verb in ("verify", "repair"):
        result = call(node.home, verb, "--json")
        assert result.exit_code == 2
        assert "in use by the node of process" in json.loads(result.stderr)["error"]["detail"]


def test_without_a_log_or_its_keys_it_says_what_to_do(home: Path, tmp_path: Path) -> None:
    result = call(tmp_path / "none", "verify", "--json")
    assert result.exit_code == 2
    assert "sprawl serve" in json.loads(result.stderr)["error"]["what_to_do"]
    (home / "keys" / KEK_FILE).rename(home / "elsewhere")
    result = call(home, "repair", "--json")
    assert result.exit_code == 2
    assert "key backup" in json.loads(result.stderr)["error"]["what_to_do"]


def test_what_no_repair_can_mend_is_refused_and_left_as_it_is(home: Path) -> None:
    for copy in ("manifest.a", "manifest.b"):
        flip(home / "data" / copy, 70)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != LOCK_PATH}
    for verb in ("verify", "repair"):
        result = call(home, verb, "--json")
        assert result.exit_code == 2
        assert "no copy of the manifest" in json.loads(result.stderr)["error"]["detail"]
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != LOCK_PATH} == before
