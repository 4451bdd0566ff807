"""The list of key backups: listed before written, forgotten only when destroyed, refused when it cannot be believed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from security.crypto.key_backups import BACKUPS_MAX, LIST_FILE, KeyBackup, KeyBackups, TooManyBackups
from security.errors import KeyFileDamaged, KeyFilePermissions, KeyFormatUnsupported

ORDERS, READINGS = bytes(range(16)), bytes(range(16, 32))


def backup_of(path: Path, *topics: bytes, backup_id: str = "0badcafe") -> KeyBackup:
    return KeyBackup(
        backup_id=backup_id,
        path=str(path),
        made_at_ms=1_000,
        expires_at_ms=2_000,
        generation=7,
        topics=frozenset(topic.hex() for topic in topics),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def backups(folder: Path) -> KeyBackups:
    return KeyBackups(folder)


def test_none_at_first(backups: KeyBackups) -> None:
    assert backups.all() == ()
    assert backups.holding(ORDERS) == []
    assert backups.forget("0badcafe") is None


def test_a_backup_is_found_by_what_it_holds(backups: KeyBackups, tmp_path: Path) -> None:
    first = backup_of(tmp_path / "first", ORDERS, backup_id="1")
    second = backup_of(tmp_path / "second", ORDERS, READINGS, backup_id="2")
    backups.write(first, b"store one")
    backups.write(second, b"store two")
    assert backups.all() == (first, second)
    assert backups.holding(ORDERS) == [first, second]
    assert backups.holding(READINGS) == [second]
    assert (tmp_path / "second").read_bytes() == b"store two"
    assert (tmp_path / "second").stat().st_mode & 0o777 == 0o600
    assert backups.path.stat().st_mode & 0o777 == 0o600


def test_it_replaces_no_file(backups: KeyBackups, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        backups.write(backup_of(tmp_path / "there", ORDERS), b"store")
    assert (tmp_path / "there").read_bytes() == b"mine"
    assert backups.all() == ()


def test_what_could_not_be_written_is_not_listed(backups: KeyBackups, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        backups.write(backup_of(tmp_path / "no folder" / "file", ORDERS), b"store")
    assert backups.all() == ()


def test_it_is_listed_before_it_is_written(backups: KeyBackups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[int] = []

    def written(path: Path, data: bytes, mode: int) -> None:
        listed.append(len(backups.all()))

    monkeypatch.setattr("security.crypto.key_backups.create_file", written)
    backups.write(backup_of(tmp_path / "file", ORDERS), b"store")
    assert listed == [1]


def test_forgetting_destroys_the_file(backups: KeyBackups, tmp_path: Path) -> None:
    backups.write(backup_of(tmp_path / "file", ORDERS), b"store")
    assert backups.forget("another") is None
    forgotten = backups.forget("0badcafe")
    assert forgotten is not None
    assert not (tmp_path / "file").exists()
    assert backups.holding(ORDERS) == []


def test_one_whose_file_is_elsewhere_by_now_is_still_held(backups: KeyBackups, tmp_path: Path) -> None:
    backups.write(backup_of(tmp_path / "file", ORDERS), b"store")
    (tmp_path / "file").unlink()
    assert len(backups.holding(ORDERS)) == 1
    assert backups.forget("0badcafe") is not None


def test_expiry(tmp_path: Path) -> None:
    backup = backup_of(tmp_path)
    assert [backup.expired(now_ms) for now_ms in (1_999, 2_000)] == [False, True]


def test_as_many_as_the_bound(backups: KeyBackups, tmp_path: Path) -> None:
    for number in range(BACKUPS_MAX):
        backups.write(backup_of(tmp_path / str(number), backup_id=str(number)), b"")
    with pytest.raises(TooManyBackups):
        backups.write(backup_of(tmp_path / "more"), b"")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", KeyFileDamaged),
        (b"{}", KeyFileDamaged),
        (b"[]", KeyFileDamaged),
        (b"\xff\xfe", KeyFileDamaged),
        (b'{"format": "another", "version": 1}', KeyFileDamaged),
        (b'{"format": "sprawl-key-backups", "version": 1, "backups": [{}]}', KeyFileDamaged),
        (b'{"format": "sprawl-key-backups", "version": 2, "backups": []}', KeyFormatUnsupported),
    ],
)
def test_a_list_that_cannot_be_read_is_no_empty_list(
    backups: KeyBackups, folder: Path, data: bytes, error: type[Exception]
) -> None:
    descriptor = os.open(folder / LIST_FILE, os.O_WRONLY | os.O_CREAT, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
    with pytest.raises(error):
        backups.holding(ORDERS)


def test_every_cut_of_a_list_is_refused(backups: KeyBackups, folder: Path, tmp_path: Path) -> None:
    backups.write(backup_of(tmp_path / "file", ORDERS), b"store")
    whole = (folder / LIST_FILE).read_bytes()
    assert json.loads(whole)["backups"][0]["topics"] == [ORDERS.hex()]
    for size in range(len(whole.rstrip()) - 1):
        (folder / LIST_FILE).write_bytes(whole[:size])
        with pytest.raises(KeyFileDamaged):
            backups.all()


def test_a_list_that_others_may_change_is_refused(backups: KeyBackups, folder: Path, tmp_path: Path) -> None:
    backups.write(backup_of(tmp_path / "file", ORDERS), b"store")
    (folder / LIST_FILE).chmod(0o660)
    with pytest.raises(KeyFilePermissions):
        backups.all()
