"""Where the key store lies: a copy that lags or is damaged is made like the newer one before anything is read."""

from __future__ import annotations

import hashlib

import pytest

from broker.log.keystore_blob import KeyStoreBlob
from broker.machine import MachineDisk
from security.crypto.keystore import KeyStore
from security.errors import KeyFormatUnsupported, KeyShredded, KeyStoreDamaged
from tests.broker.log.journals import CLUSTER, ORDERS, READINGS, FixedKms, FixedRandom

COPIES = ("keystore.a", "keystore.b")


def store_on(disk: MachineDisk) -> KeyStore:
    random = FixedRandom("blob")
    return KeyStore(KeyStoreBlob(disk), FixedKms(random), random.bytes)


@pytest.fixture
def made(disk: MachineDisk) -> KeyStore:
    store = store_on(disk)
    store.create(CLUSTER)
    store.add_many([ORDERS, READINGS])
    return store


def put(disk: MachineDisk, path: str, data: bytes) -> None:
    (disk.root / path).write_bytes(data)


def copies(disk: MachineDisk) -> list[bytes]:
    return [(disk.root / path).read_bytes() for path in COPIES]


def test_nothing_is_there_before_the_first_write(disk: MachineDisk) -> None:
    assert KeyStoreBlob(disk).read() is None


def test_both_copies_are_owner_only_and_alike(disk: MachineDisk, made: KeyStore) -> None:
    assert copies(disk)[0] == copies(disk)[1] == KeyStoreBlob(disk).read()
    assert {(disk.root / path).stat().st_mode & 0o777 for path in COPIES} == {0o600}


@pytest.mark.parametrize("lagging", COPIES)
def test_a_copy_left_behind_by_a_crash_within_a_shredding_does_not_keep_the_key(
    disk: MachineDisk, made: KeyStore, lagging: str
) -> None:
    before = copies(disk)[0]
    made.shred(ORDERS)
    put(disk, lagging, before)
    again = store_on(disk)
    again.load()
    with pytest.raises(KeyShredded):
        again.root_key(ORDERS)
    assert copies(disk)[0] == copies(disk)[1] != before


@pytest.mark.parametrize("damaged", COPIES)
def test_a_damaged_copy_is_stepped_over_and_mended_wherever_the_byte(disk: MachineDisk, made: KeyStore, damaged: str) -> None:
    whole = copies(disk)[0]
    for at in range(0, len(whole), 7):
        put(disk, damaged, whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert KeyStoreBlob(disk).read() == whole
        assert copies(disk) == [whole, whole]


@pytest.mark.parametrize("gone", COPIES)
def test_a_missing_copy_is_made_again(disk: MachineDisk, made: KeyStore, gone: str) -> None:
    whole = copies(disk)[0]
    disk.remove(gone)
    assert KeyStoreBlob(disk).read() == whole
    assert copies(disk) == [whole, whole]


def test_both_copies_damaged_are_refused_and_left_as_they_are(disk: MachineDisk, made: KeyStore) -> None:
    for path in COPIES:
        put(disk, path, b"SPRAWLKS" + bytes(100))
    with pytest.raises(KeyStoreDamaged):
        store_on(disk).load()
    assert copies(disk) == [b"SPRAWLKS" + bytes(100)] * 2


def test_a_newer_version_is_refused_by_name_and_not_overwritten(disk: MachineDisk, made: KeyStore) -> None:
    whole = copies(disk)[0]
    newer = whole[:8] + (2).to_bytes(2, "little") + whole[10:-32]
    newer += hashlib.sha256(newer).digest()
    put(disk, "keystore.a", newer)
    with pytest.raises(KeyFormatUnsupported, match="key store has format version 2"):
        store_on(disk).load()
    assert copies(disk) == [newer, whole]
