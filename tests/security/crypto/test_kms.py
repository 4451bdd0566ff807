import base64
import fcntl
import json
import os
import stat

import pytest

from security.crypto.kms import KEY_FILE_BYTES_MAX, LocalFileKms
from security.errors import (
    KeyFileBusy,
    KeyFileDamaged,
    KeyFileExists,
    KeyFilePermissions,
    KeyFormatUnsupported,
    KeyMissing,
    KeyWrong,
)

ROOT = bytes(range(32))


@pytest.fixture
def path(tmp_path, kms):
    return tmp_path / "keks.json"


@pytest.fixture
def rewrite(path):
    """Change the file's JSON by hand."""

    def _rewrite(change):
        content = json.loads(path.read_bytes())
        change(content)
        path.write_text(json.dumps(content))

    return _rewrite


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


class TestCreate:
    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    def test_is_for_its_owner_only_whatever_the_umask(self, tmp_path, umask):
        before = os.umask(umask)
        try:
            LocalFileKms.create(tmp_path / "new.json")
        finally:
            os.umask(before)
        assert mode(tmp_path / "new.json") == 0o600

    def test_never_replaces_a_file(self, path):
        before = path.read_bytes()
        with pytest.raises(KeyFileExists, match=str(path)):
            LocalFileKms.create(path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]

    def test_leaves_nothing_behind_when_the_disk_is_full(self, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            LocalFileKms.create(tmp_path / "new.json")
        assert os.listdir(tmp_path) == []

    def test_says_when_it_was_made(self, path):
        (key,) = json.loads(path.read_bytes())["keys"]
        assert key["created_at_ms"] == 1_700_000_000_000
        assert len(base64.b64decode(key["key"])) == 32


class TestLoad:
    def test_wraps_and_unwraps_as_before(self, path, kms):
        loaded = LocalFileKms.load(path)
        assert loaded.key_id == kms.key_id
        assert loaded.key_ids() == [kms.key_id]
        assert loaded.unwrap(kms.key_id, kms.wrap(ROOT, b"context"), b"context") == ROOT

    def test_names_a_missing_file_and_what_to_do(self, tmp_path):
        with pytest.raises(KeyMissing, match=r"absent\.json does not hold any key: bring the key file back"):
            LocalFileKms.load(tmp_path / "absent.json")

    @pytest.mark.parametrize("bits", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o644, 0o660, 0o777])
    def test_refuses_a_file_that_others_may_use(self, path, bits):
        path.chmod(bits)
        with pytest.raises(KeyFilePermissions, match=f"mode 0{bits:o}.*chmod 600"):
            LocalFileKms.load(path)

    @pytest.mark.parametrize("bits", [0o600, 0o400])
    def test_takes_a_file_of_its_owner(self, path, bits):
        path.chmod(bits)
        assert LocalFileKms.load(path).key_ids()

    def test_refuses_every_half_written_file(self, path):
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(KeyFileDamaged, match=str(path)):
                LocalFileKms.load(path)

    def test_refuses_an_oversized_file(self, path):
        path.write_bytes(path.read_bytes() + b" " * KEY_FILE_BYTES_MAX)
        with pytest.raises(KeyFileDamaged, match=f"more than {KEY_FILE_BYTES_MAX} bytes"):
            LocalFileKms.load(path)

    def test_refuses_what_is_no_regular_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe", 0o600)
        (tmp_path / "folder").mkdir(0o700)
        for name in ("pipe", "folder"):
            with pytest.raises(KeyFileDamaged, match="not a regular file"):
                LocalFileKms.load(tmp_path / name)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (lambda file: file.update(format="other"), "not marked as sprawl-keks version 1"),
            (lambda file: file.update(version=0), "not marked as sprawl-keks version 1"),
            (lambda file: file.update(keys=[]), "0 active keys"),
            (lambda file: file.update(keys={}), r"\$\.keys"),
            (lambda file: file["keys"].append(dict(file["keys"][0])), "2 active keys"),
            (lambda file: file["keys"].append({**file["keys"][0], "state": "previous"}), "one id"),
            (lambda file: file["keys"][0].update(state="lost"), r"\$\.keys\[0\]\.state"),
            (lambda file: file["keys"][0].update(state="retired"), "0 active keys"),
            (lambda file: file["keys"][0].update(id=""), r"\$\.keys\[0\]\.id"),
            (lambda file: file["keys"][0].update(id="k" * 2049), r"\$\.keys\[0\]\.id"),
            (lambda file: file["keys"][0].update(key=7), r"\$\.keys\[0\]\.key"),
            (lambda file: file["keys"][0].update(key="no base64!"), r"\$\.keys\[0\]\.key"),
            (lambda file: file["keys"][0].update(key="AAAA"), "not 32 bytes"),
            (lambda file: file["keys"][0].update(created_at_ms="then"), r"\$\.keys\[0\]\.created_at_ms"),
            (lambda file: file["keys"][0].pop("key"), r"\$\.keys"),
            (lambda file: file.pop("keys"), "top level"),
        ],
    )
    def test_names_what_is_wrong_in_the_file(self, path, rewrite, change, complaint):
        rewrite(change)
        with pytest.raises(KeyFileDamaged, match=complaint):
            LocalFileKms.load(path)

    def test_tells_a_newer_version_from_damage(self, path, rewrite):
        rewrite(lambda file: file.update(version=2, keys="sealed in some new way"))
        with pytest.raises(KeyFormatUnsupported, match="version 2, this build reads up to 1"):
            LocalFileKms.load(path)

    @pytest.mark.parametrize("where", ["id", "state", "created_at_ms", "key", "planted-field"])
    def test_never_quotes_a_key_pasted_into_the_wrong_place(self, path, rewrite, where):
        rewrite(lambda file: file["keys"][0].update({where: ["planted-key"]}))
        with pytest.raises(KeyFileDamaged) as refusal:
            LocalFileKms.load(path)
        assert "planted" not in f"{refusal.value!r} {refusal.value}"
        rewrite(lambda file: file.update({"planted-key": 1}))
        with pytest.raises(KeyFileDamaged) as refusal:
            LocalFileKms.load(path)
        assert "planted" not in f"{refusal.value!r} {refusal.value}"

    def test_refuses_deep_nesting(self, path):
        path.write_bytes(b'{"keys":' + b"[" * 100_000)
        with pytest.raises(KeyFileDamaged):
            LocalFileKms.load(path)


class TestUnwrap:
    def test_names_a_key_that_is_not_there(self, kms):
        with pytest.raises(KeyMissing, match="does not hold the key kek-elsewhere: bring back"):
            kms.unwrap("kek-elsewhere", bytes(60), b"")

    def test_names_a_key_that_is_another(self, path, kms, rewrite):
        wrapped = kms.wrap(ROOT, b"")
        rewrite(lambda file: file["keys"][0].update(key=base64.b64encode(bytes(32)).decode()))
        with pytest.raises(KeyWrong, match=f"the key {kms.key_id} does not open"):
            LocalFileKms.load(path).unwrap(kms.key_id, wrapped, b"")

    def test_needs_the_context(self, kms):
        with pytest.raises(KeyWrong):
            kms.unwrap(kms.key_id, kms.wrap(ROOT, b"topic 1"), b"topic 2")


class TestRotate:
    def test_makes_a_new_active_key_and_keeps_the_old_for_unwrapping(self, path, kms):
        old, wrapped = kms.key_id, kms.wrap(ROOT, b"")
        new = kms.rotate()
        for holder in (kms, LocalFileKms.load(path)):
            assert holder.key_id == new != old
            assert holder.key_ids() == [new, old]
            assert holder.unwrap(old, wrapped, b"") == ROOT
            assert holder.unwrap(new, holder.wrap(ROOT, b""), b"") == ROOT
        assert mode(path) == 0o600
        assert os.listdir(path.parent) == [path.name]

    def test_leaves_all_as_it_was_when_the_file_cannot_be_replaced(self, path, kms, monkeypatch):
        def power_cut(source, target):
            raise OSError(5, "Input/output error")

        before, active = path.read_bytes(), kms.key_id
        monkeypatch.setattr(os, "replace", power_cut)
        with pytest.raises(OSError, match="Input/output error"):
            kms.rotate()
        assert path.read_bytes() == before
        assert kms.key_id == active
        assert os.listdir(path.parent) == [path.name]

    def test_cleans_up_what_a_crash_left(self, path, kms):
        (path.parent / f".{path.name}.{os.getpid()}.new").write_bytes(b"half a ke")
        kms.rotate()
        assert os.listdir(path.parent) == [path.name]

    def test_loses_no_key_that_another_process_added(self, path, kms):
        first = kms.key_id
        second = LocalFileKms.load(path).rotate()
        third = kms.rotate()
        assert set(LocalFileKms.load(path).key_ids()) == set(kms.key_ids()) == {first, second, third}

    def test_refuses_while_another_process_changes_the_file(self, path, kms):
        before = path.read_bytes()
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            with pytest.raises(KeyFileBusy, match="try again"):
                kms.rotate()
        finally:
            os.close(folder)
        assert path.read_bytes() == before

    def test_avoids_ids_in_use(self, tmp_path):
        draws = iter([b"\1" * 4, b"\2" * 32, b"\1" * 4, b"\3" * 4, b"\4" * 32])
        kms = LocalFileKms.create(tmp_path / "new.json", lambda count: next(draws))
        assert kms.rotate() == "kek-03030303"


class TestRetire:
    def test_stops_a_previous_key_from_unwrapping(self, path, kms):
        old, wrapped = kms.key_id, kms.wrap(ROOT, b"")
        new = kms.rotate()
        kms.retire(old)
        for holder in (kms, LocalFileKms.load(path)):
            assert holder.key_ids() == [new]
            with pytest.raises(KeyMissing, match=f"{old}: it is there but retired"):
                holder.unwrap(old, wrapped, b"")

    def test_leaves_the_active_key_alone(self, kms):
        with pytest.raises(KeyMissing, match="it is the active one"):
            kms.retire(kms.key_id)
        assert kms.wrap(ROOT, b"")

    def test_names_a_key_that_is_not_there(self, kms):
        with pytest.raises(KeyMissing, match="kek-elsewhere"):
            kms.retire("kek-elsewhere")


def test_shows_no_key(path, kms, random, shown):
    kms.rotate()
    seen = shown(kms) + shown(LocalFileKms.load(path))
    assert len(random.keys) == 2
    for key in random.keys:
        for form in (repr(key)[2:-1], key.hex(), base64.b64encode(key).decode()):
            assert form not in seen
