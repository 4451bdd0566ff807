"""A small file in two copies: whatever call fails or is the last one before the power goes, one copy is whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from broker.log.two_copies import TwoCopyFile
from broker.machine import MachineDisk


class Cut(Exception):
    """The power went."""


class CutDisk:
    """Does `calls` calls, then none; a write that is cut leaves half of its bytes."""

    def __init__(self, disk: MachineDisk, calls: int) -> None:
        self._disk, self.left = disk, calls

    def spend(self) -> None:
        if self.left == 0:
            raise Cut
        self.left -= 1

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real = getattr(self._disk, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if name in ("open", "rename", "remove", "sync_folder"):
                self.spend()
            found = real(*arguments, **named)
            return CutFile(found, self) if name == "open" else found

        return call


class CutFile:
    def __init__(self, file: Any, disk: CutDisk) -> None:
        self._file, self._disk = file, disk

    def write_at(self, position: int, buffers: Sequence[bytes]) -> int:
        try:
            self._disk.spend()
        except Cut:
            self._file.write_at(position, [b"".join(buffers)[: len(b"".join(buffers)) // 2]])
            raise
        return int(self._file.write_at(position, buffers))

    def sync(self) -> None:
        self._disk.spend()
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def test_both_copies_hold_what_was_written_last(disk: MachineDisk) -> None:
    file = TwoCopyFile(disk, "", "manifest")
    assert file.paths == ("manifest.a", "manifest.b")
    assert file.read_all() == []
    file.write(b"one")
    file.write(b"second")
    assert file.read_all() == [("manifest.a", b"second"), ("manifest.b", b"second")]
    assert disk.list("") == ["manifest.a", "manifest.b"]


def test_copies_may_live_in_a_folder(disk: MachineDisk) -> None:
    disk.make_folder("small")
    TwoCopyFile(disk, "small", "x").write(b"one")
    assert disk.list("small") == ["x.a", "x.b"]


def test_one_copy_alone_is_read(disk: MachineDisk) -> None:
    file = TwoCopyFile(disk, "", "manifest")
    file.write(b"one")
    disk.remove("manifest.a")
    assert file.read_all() == [("manifest.b", b"one")]


def test_wherever_a_write_is_cut_one_copy_is_the_old_or_the_new_one_whole(disk: MachineDisk) -> None:
    old, new = b"o" * 1000, b"n" * 1000
    for calls in range(100):
        file = TwoCopyFile(disk, "", f"m{calls}")
        file.write(old)
        cut = CutDisk(disk, calls)
        try:
            TwoCopyFile(cut, "", f"m{calls}").write(new)
        except Cut:
            found = [data for _, data in file.read_all()]
            assert set(found) <= {old, new}
            assert len(found) == 2, f"after {calls} calls"
            assert found in ([old, old], [new, old], [new, new])
            file.write(new)  # and what was left behind does not stop the next one
            assert [data for _, data in file.read_all()] == [new, new]
        else:
            break
    else:
        pytest.fail("the write never ended")
    assert calls > 8
