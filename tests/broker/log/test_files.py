"""A file shared by readers: closed and removed only when the last of them has left."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.log.files import LogFile
from broker.log.manifest import FileEntry, FileKind, FileState
from broker.machine import MachineDisk


@pytest.fixture
def shared(tmp_path: Path) -> LogFile:
    disk = MachineDisk(tmp_path)
    disk.make_folder("journal")
    entry = FileEntry(1, FileKind.JOURNAL, FileState.OPEN, 0, 1, 0, b"", b"")
    file = disk.open(entry.path, create=True)
    file.write_at(0, [b"some bytes"])
    return LogFile(disk, entry, file)


def test_a_file_closed_under_a_reader_stays_open_for_it(shared: LogFile) -> None:
    shared.hold()
    shared.close()
    assert shared.file.read_at(0, 4) == b"some"
    shared.release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        shared.file.read_at(0, 4)


def test_a_retired_file_goes_with_its_last_reader(shared: LogFile, tmp_path: Path) -> None:
    path = tmp_path / shared.path
    shared.hold()
    shared.hold()
    shared.retire()
    shared.release()
    assert path.exists()
    assert shared.file.read_at(0, 4) == b"some"
    shared.release()
    assert not path.exists()


def test_a_retired_file_that_nobody_reads_goes_at_once(shared: LogFile, tmp_path: Path) -> None:
    shared.retire()
    assert not (tmp_path / shared.path).exists()


def test_closing_twice_is_closing(shared: LogFile) -> None:
    shared.close()
    shared.close()
