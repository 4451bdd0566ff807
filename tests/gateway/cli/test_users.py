"""`sprawl users` against a real node."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.services


def test_a_user_is_added_listed_changed_and_deleted(node: Any, tmp_path: Path) -> None:
    (made,) = node.rows("users", "add", "alice", "--role", "publisher")
    assert (made["name"], made["roles"], sorted(made["mechanisms"])) == (
        "alice",
        ["publisher"],
        ["SCRAM-SHA-256", "SCRAM-SHA-512"],
    )
    assert len(made["password"]) >= 24
    assert "alice" in [user["name"] for user in node.rows("users", "list")]
    assert "publisher" in node.ok("users", "list")

    out = tmp_path / "alice.password"
    (changed,) = node.rows("users", "password", "alice", "--out", str(out))
    assert changed == {"name": "alice"}
    assert out.read_text().strip() not in ("", made["password"])
    assert out.stat().st_mode & 0o777 == 0o600

    assert json.loads(node.ok("users", "delete", "alice", "--json")) == {"deleted": "alice"}
    gone = node.call("users", "delete", "alice")
    assert (gone.exit_code, "there is no user 'alice'" in gone.stderr) == (1, True)


def test_the_password_is_shown_once_alone_on_standard_output(node: Any) -> None:
    result = node.call("users", "add", "bob")
    assert result.exit_code == 0
    password = result.stdout.strip()
    assert "\n" not in password
    assert password not in node.ok("users", "list", "--json")


def test_a_password_of_ones_own_comes_from_a_file(node: Any, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("correct horse\nsecond line\n")
    result = node.call("users", "add", "carol", "--password-file", str(file))
    assert result.exit_code == 0
    assert "correct horse" not in result.output
    short = tmp_path / "short"
    short.write_text("x\n")
    for path, said in ((short, "8 to 256"), (tmp_path / "none", "cannot be read"), (Path("/dev/null"), "is empty")):
        refused = node.call("users", "add", "dave", "--password-file", str(path))
        assert refused.exit_code in (1, 2)
        assert said in refused.stderr
    both = node.call("users", "add", "dave", "--password-file", str(file), "--out", str(tmp_path / "new"))
    assert "leave out --out" in both.stderr


def test_a_file_that_is_there_is_not_overwritten(node: Any, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    result = node.call("users", "add", "erin", "--out", str(tmp_path / "kept"))
    assert "exists already" in result.stderr
    assert (tmp_path / "kept").read_text() == "mine"
    assert "erin" not in node.ok("users", "list")
