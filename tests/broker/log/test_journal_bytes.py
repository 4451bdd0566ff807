"""A journal read a region at a time says what the whole of its bytes says, damaged or not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from broker.log import journal_bytes
from broker.log.journal_bytes import JournalBytes
from broker.log.layout import FILE_HEADER_BYTES, GROUP_HEADER_BYTES, GROUP_MAGIC
from broker.log.scan import groups
from broker.machine import MachineDisk
from tests.broker.log.journals import ORDERS, SALT, Journal, one_record

Flip = Callable[..., bytes]


@pytest.fixture
def data(journal: Journal) -> bytes:
    """Groups of many sizes, some larger than what is read along with a header."""
    for size in (1, 300, 40_000, 5, 17_000, 16_000, 2, 2, 2, 70_000):
        journal.group(journal.frame((ORDERS, 0, one_record(bytes(size)))))
    return journal.data


@pytest.fixture(params=[16 * 1024, GROUP_HEADER_BYTES])
def _heads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_bytes, "HEADS_BYTES", request.param)
    monkeypatch.setattr(journal_bytes, "SEARCH_BYTES", 1000)


def same(data: bytes, end: int) -> None:
    source = JournalBytes(data, end)
    assert source.groups() == list(groups(data, FILE_HEADER_BYTES, end, source.salt()))


@pytest.mark.usefixtures("_heads")
def test_groups_are_those_of_the_whole(data: bytes, flipped: Flip) -> None:
    assert len(JournalBytes(data, len(data)).groups()) == 10
    same(data, len(data))
    found = [group.position for group in groups(data, FILE_HEADER_BYTES, len(data), SALT)]
    places = [at + shift for at in found for shift in (0, 3, 4, 7, 8, 20, 48, 60, 63, 64, 70)]
    for at in places:
        same(flipped(data, at), len(data))
    for end in [0, 1, FILE_HEADER_BYTES, *found, *(at + 63 for at in found), *(at + 64 for at in found), len(data) - 1]:
        same(data[:end], end)


@pytest.mark.usefixtures("_heads")
def test_groups_behind_bytes_that_look_like_groups(data: bytes) -> None:
    chosen = random.Random(1)
    for _ in range(30):
        at = chosen.randrange(FILE_HEADER_BYTES, len(data) - 5_000)
        noise = GROUP_MAGIC * chosen.randrange(1, 4) + chosen.randbytes(chosen.randrange(3_000))
        damaged = data[:at] + noise + data[at + chosen.randrange(5_000) :]
        same(damaged, len(damaged))


def test_the_salt_is_found_without_the_file_header(data: bytes, flipped: Flip) -> None:
    damaged = flipped(data, 20)
    assert JournalBytes(damaged, len(data)).header() is None
    assert JournalBytes(damaged, len(data)).salt() == SALT
    same(damaged, len(data))


def test_reading_is_bounded_by_the_data_and_by_the_file(journal: Journal, disk: MachineDisk, data: bytes) -> None:
    source = JournalBytes(disk.open(journal.entry.path), len(data) - 10)
    assert source.read(0, len(data)) == data[:-10]
    assert source.read(200, 250) == data[200:250]
    assert source.read(len(data), len(data) + 5) == source.read(20, 10) == b""
    assert JournalBytes(disk.open(journal.entry.path), len(data) + 1_000).read(0, 1 << 40) == data
