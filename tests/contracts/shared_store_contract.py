"""What each store promises that node and command line share (`security.identity.shared_store`): a subclass gives `subject`.

Tokens and users are kept the same way, and a mistake in either would let somebody in, or a whole fleet out.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Protocol

import pytest

from security.errors import IdentityProblem
from security.files import replace_file
from security.identity.document_file import StoreDamaged, StoreFull
from security.identity.shared_store import STALE_MS_MAX, SharedStore
from security.principal import Principal

AnyStore = SharedStore[Any, Any]
START_MS = 1_800_000_000_000


class Clock:
    def __init__(self) -> None:
        self.ms = START_MS

    def __call__(self) -> int:
        return self.ms


class Subject(Protocol):
    """A store, and somebody in it. Names are given by the test."""

    path: Path
    damaged: type[StoreDamaged]
    full: type[StoreFull]
    bound: str
    """The option, and the limit's name in the refusal."""

    def open(self, **options: int) -> AnyStore:
        """Once more, as another process would."""

    def add(self, store: AnyStore, name: str) -> None: ...
    def remove(self, store: AnyStore, name: str) -> None: ...
    def names(self, store: AnyStore) -> set[str]:
        """Of those who may come in."""

    async def prove(self, store: AnyStore, name: str) -> Principal:
        """By the store's provider. IdentityProblem."""

    def still_valid(self, store: AnyStore, principal: Principal) -> None: ...


def spoil_file(path: Path, spoil: str) -> None:
    if spoil == "open to others":
        path.chmod(0o640)
        os.utime(path, ns=(1, 1))
        return
    data = path.read_bytes()
    path.unlink()
    if spoil == "a folder":
        path.mkdir()
    elif spoil != "gone":
        replace_file(path, data[: len(data) // 2] if spoil == "cut" else b"", 0o600)


class SharedStoreContract:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def filled(self, subject: Subject) -> AnyStore:
        """With alice in it."""
        store = subject.open()
        subject.add(store, "alice")
        return store

    # What another process did

    async def test_another_process_sees_who_was_added(self, subject: Subject) -> None:
        store, other = subject.open(), subject.open()
        subject.add(store, "alice")
        assert subject.names(other) == set()
        assert other.reload_if_changed() is True
        assert subject.names(other) == {"alice"}
        await subject.prove(other, "alice")
        assert subject.path.stat().st_mode & 0o777 == 0o600

    async def test_whom_it_took_away_is_out_of_the_running_node(self, subject: Subject, filled: AnyStore) -> None:
        principal, epoch = await subject.prove(filled, "alice"), filled.epoch
        subject.remove(subject.open(), "alice")
        subject.still_valid(filled, principal)  # not seen yet
        assert filled.reload_if_changed() is True
        assert filled.epoch == epoch + 1
        with pytest.raises(IdentityProblem):
            subject.still_valid(filled, principal)
        with pytest.raises(IdentityProblem):
            await subject.prove(filled, "alice")

    def test_nothing_changed_is_nothing_done(self, subject: Subject, filled: AnyStore) -> None:
        epoch = filled.epoch
        assert filled.reload_if_changed() is False
        replace_file(subject.path, subject.path.read_bytes(), 0o600)  # another inode, the same content
        assert filled.reload_if_changed() is False
        assert filled.epoch == epoch

    def test_a_change_of_its_own_does_not_undo_the_others(self, subject: Subject, filled: AnyStore) -> None:
        subject.remove(subject.open(), "alice")
        subject.add(filled, "made without having seen it")
        assert subject.names(filled) == {"made without having seen it"}

    def test_changes_from_many_sides_at_once_all_last(self, subject: Subject) -> None:
        store = subject.open()

        def make(side: str) -> None:
            own = subject.open()
            for number in range(4):
                subject.add(own, f"{side}-{number}")

        threads = [threading.Thread(target=make, args=(side,)) for side in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.reload_if_changed()
        assert subject.names(store) == {f"{side}-{number}" for side in "abcd" for number in range(4)}

    # Damage

    @pytest.mark.parametrize("spoil", ["gone", "empty", "cut", "open to others", "a folder"])
    async def test_damage_is_said_then_outlived_for_a_while_then_everybody_is_refused(
        self, subject: Subject, filled: AnyStore, clock: Clock, spoil: str
    ) -> None:
        principal, good = await subject.prove(filled, "alice"), subject.path.read_bytes()
        spoil_file(subject.path, spoil)
        for waited_ms in (0, STALE_MS_MAX // 2, STALE_MS_MAX - 1):
            clock.ms = START_MS + waited_ms
            with pytest.raises(subject.damaged):
                filled.reload_if_changed()
            await subject.prove(filled, "alice")
            subject.still_valid(filled, principal)
        clock.ms += 1
        with pytest.raises(subject.damaged):
            await subject.prove(filled, "alice")
        with pytest.raises(subject.damaged):
            subject.still_valid(filled, principal)
        if subject.path.is_dir():
            subject.path.rmdir()
        replace_file(subject.path, good, 0o600)
        assert filled.reload_if_changed() is False
        await subject.prove(filled, "alice")

    async def test_a_clock_that_goes_back_does_not_make_it_last_longer(
        self, subject: Subject, filled: AnyStore, clock: Clock
    ) -> None:
        spoil_file(subject.path, "empty")
        with pytest.raises(subject.damaged):
            filled.reload_if_changed()
        clock.ms -= 3_600_000
        with pytest.raises(subject.damaged):
            await subject.prove(filled, "alice")

    @pytest.mark.usefixtures("filled")
    @pytest.mark.parametrize("spoil", ["empty", "cut", "open to others", "a folder"])
    def test_a_node_does_not_start_on_damage(self, subject: Subject, spoil: str) -> None:
        spoil_file(subject.path, spoil)
        with pytest.raises(subject.damaged) as damaged:
            subject.open()
        assert str(subject.path) in str(damaged.value)

    @pytest.mark.parametrize("spoil", ["gone", "empty", "cut"])
    def test_damage_is_not_overwritten_by_a_change(self, subject: Subject, filled: AnyStore, spoil: str) -> None:
        spoil_file(subject.path, spoil)
        for change in (subject.add, subject.remove):
            with pytest.raises(subject.damaged):
                change(filled, "alice")
        assert subject.path.exists() == (spoil != "gone")

    # The bound

    def test_the_store_has_a_bound_and_who_is_gone_makes_room(self, subject: Subject) -> None:
        store = subject.open(**{subject.bound: 2})
        subject.add(store, "a")
        subject.add(store, "b")
        with pytest.raises(subject.full, match=f"{subject.bound} = 2") as full:
            subject.add(store, "c")
        assert (full.value.limit_name, full.value.limit) == (subject.bound, 2)
        subject.remove(store, "a")
        subject.add(store, "c")
        assert subject.names(store) == {"b", "c"}
