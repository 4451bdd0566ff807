import json
import os
from pathlib import Path

from click.testing import CliRunner

from gateway.cli.main import main
from tests.gateway.cli.conftest import Node


def test_the_status_of_a_running_node(node: Node, topic: str) -> None:
    (before,) = node.rows("keys", "status")
    node.ok("topics", "create", topic)
    (after,) = node.rows("keys", "status")
    assert after["topics"] == before["topics"] + 1
    assert after["generation"] > before["generation"]
    assert after["keys_needed"] == [after["active_key"]]
    assert after["mode"] == "0600"


def test_no_key_is_printed(node: Node) -> None:
    kek = json.loads((node.home / "keys" / "kek.json").read_text())
    secrets = [text for text in _texts(kek) if len(text) >= 40]
    shown = node.ok("keys", "status", "--json")
    assert secrets
    assert not [secret for secret in secrets if secret in shown]


def test_without_a_node_it_says_how_to_start_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["keys", "status", "--home", str(tmp_path / "none"), "--json"])
    assert result.exit_code == 2
    assert "sprawl serve" in json.loads(result.stderr)["error"]["what_to_do"]


def test_a_wrong_key_is_named(node: Node, tmp_path: Path) -> None:
    import shutil

    from security.crypto.kms import LocalFileKms

    home = tmp_path / "home"
    shutil.copytree(node.home, home)
    os.unlink(home / "keys" / "kek.json")
    other = LocalFileKms.create(home / "keys" / "kek.json").key_id
    result = CliRunner().invoke(main, ["keys", "status", "--home", str(home), "--json"])
    assert result.exit_code == 2
    assert other not in json.loads(result.stderr)["error"]["detail"]
    assert "kek-" in json.loads(result.stderr)["error"]["detail"]


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in _texts(part)]


def test_a_key_backup_is_made_listed_and_told_of(node: Node, topic: str, tmp_path: Path) -> None:
    file = tmp_path / "keystore.backup"
    node.ok("topics", "create", topic)
    (made,) = node.rows("keys", "backup", str(file), "--expires-in", "30d")
    assert made["expires_at_ms"] - made["made_at_ms"] == 30 * 86_400_000
    assert file.stat().st_mode & 0o777 == 0o600
    (deleted,) = node.rows("topics", "delete", topic, "--yes")
    assert [copy["id"] for copy in deleted["key_backups"]] == [made["id"]]
    (listed,) = node.rows("keys", "backups")
    assert (listed["id"], listed["state"], listed["deleted_topics"]) == (made["id"], "kept", 1)
    (forgotten,) = node.rows("keys", "forget-backup", made["id"], "--yes")
    assert forgotten["path"] == str(file)
    assert not file.exists()
    assert node.rows("keys", "backups") == []


def test_a_key_backup_replaces_nothing(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "there"
    file.write_text("mine")
    result = CliRunner().invoke(main, ["keys", "backup", str(file), "--home", str(node.home), "--json"])
    assert result.exit_code == 2
    assert "exists" in json.loads(result.stderr)["error"]["title"]
    assert file.read_text() == "mine"


def test_a_key_backup_needs_a_node_and_a_time(node: Node, tmp_path: Path) -> None:
    for arguments in (
        ["backup", str(tmp_path / "f"), "--home", str(tmp_path / "none")],
        ["backup", str(tmp_path / "f"), "--home", str(node.home), "--expires-in", "soon"],
        ["forget-backup", "nope", "--yes", "--home", str(node.home)],
    ):
        result = CliRunner().invoke(main, ["keys", *arguments])
        assert result.exit_code == 2
    assert not (tmp_path / "f").exists()
