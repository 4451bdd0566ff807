import os
import stat

import pytest

from security.errors import KeyFileDamaged, KeyFilePermissions
from security.files import PRIVATE_MODE, PUBLIC_MODE, create_file, read_private, replace_file


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("write", [create_file, replace_file])
@pytest.mark.parametrize("bits", [PRIVATE_MODE, PUBLIC_MODE])
@pytest.mark.usefixtures("open_umask")
class TestWriting:
    def test_gives_the_file_its_mode_from_birth(self, tmp_path, monkeypatch, write, bits):
        seen = []
        fsync = os.fsync

        def watched(descriptor):
            seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", watched)
        write(tmp_path / "file", b"data", bits)
        assert (tmp_path / "file").read_bytes() == b"data"
        assert mode(tmp_path / "file") == seen[0] == bits
        assert len(seen) == 2, "the file, then its folder"
        assert os.listdir(tmp_path) == ["file"]

    def test_names_no_file_that_is_not_synced(self, tmp_path, monkeypatch, write, bits):
        def power_cut(descriptor):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", power_cut)
        with pytest.raises(OSError, match="Input/output error"):
            write(tmp_path / "file", b"data", bits)
        assert os.listdir(tmp_path) == []


def test_create_refuses_a_file_that_is_there(tmp_path):
    create_file(tmp_path / "file", b"first", PRIVATE_MODE)
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "file", b"second", PRIVATE_MODE)
    assert (tmp_path / "file").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_create_refuses_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "file", b"data", PRIVATE_MODE)
    assert not (tmp_path / "elsewhere").exists()


def test_replace_gives_a_file_open_to_others_its_mode(tmp_path):
    (tmp_path / "file").write_bytes(b"first")
    (tmp_path / "file").chmod(0o666)
    replace_file(tmp_path / "file", b"second", PRIVATE_MODE)
    assert (tmp_path / "file").read_bytes() == b"second"
    assert mode(tmp_path / "file") == 0o600


class TestReading:
    def test_stops_at_its_bound(self, tmp_path):
        create_file(tmp_path / "file", b"12345", PRIVATE_MODE)
        assert read_private(tmp_path / "file", 5) == b"12345"
        with pytest.raises(KeyFileDamaged, match="more than 4 bytes"):
            read_private(tmp_path / "file", 4)

    def test_refuses_what_others_may_use(self, tmp_path):
        create_file(tmp_path / "file", b"data", PRIVATE_MODE)
        (tmp_path / "file").chmod(0o640)
        with pytest.raises(KeyFilePermissions, match="0640"):
            read_private(tmp_path / "file", 5)

    def test_looks_at_the_file_behind_a_link(self, tmp_path):
        create_file(tmp_path / "file", b"data", PRIVATE_MODE)
        (tmp_path / "link").symlink_to(tmp_path / "file")
        assert read_private(tmp_path / "link", 5) == b"data"
        (tmp_path / "file").chmod(0o604)
        with pytest.raises(KeyFilePermissions, match="0604"):
            read_private(tmp_path / "link", 5)

    def test_closes_what_it_opened(self, tmp_path):
        create_file(tmp_path / "file", b"data", PRIVATE_MODE)
        os.mkfifo(tmp_path / "pipe", 0o600)
        before = os.listdir("/proc/self/fd")
        read_private(tmp_path / "file", 5)
        with pytest.raises(KeyFileDamaged):
            read_private(tmp_path / "pipe", 5)
        assert len(os.listdir("/proc/self/fd")) == len(before)
