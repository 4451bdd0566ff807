from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms

CLUSTER = bytes(range(16))
ORDERS = b"orders-topic-id."
METERS = b"meters-topic-id."


class MemoryBlob:
    """The broker's two-copy file, without the disk; `failing` makes the next writes fail as a full disk does."""

    def __init__(self, data: bytes | None = None) -> None:
        self.data = data
        self.failing = False

    def read(self) -> bytes | None:
        return self.data

    def write(self, data: bytes) -> None:
        if self.failing:
            raise OSError(28, "No space left on device")
        self.data = data


class CountingRandom:
    """Bytes that repeat only after 2^64 calls, the same in every run; remembers the 32-byte ones, as those are keys."""

    def __init__(self, start: int = 1) -> None:
        self._next = start
        self.keys: list[bytes] = []

    def __call__(self, count: int) -> bytes:
        block = self._next.to_bytes(8, "big")
        self._next += 1
        drawn = (block * (count // 8 + 1))[-count:]
        if count == 32:
            self.keys.append(drawn)
        return drawn


@pytest.fixture(scope="session")
def new_blob() -> type[MemoryBlob]:
    return MemoryBlob


@pytest.fixture
def random() -> CountingRandom:
    return CountingRandom(0xA1B2C3D400000000)


@pytest.fixture
def kms(tmp_path: Path, random: CountingRandom) -> LocalFileKms:
    return LocalFileKms.create(tmp_path / "keks.json", random, lambda: 1_700_000_000_000)


@pytest.fixture
def blob() -> MemoryBlob:
    return MemoryBlob()


@pytest.fixture
def keystore(blob: MemoryBlob, kms: LocalFileKms, random: CountingRandom) -> KeyStore:
    store = KeyStore(blob, kms, random)
    store.create(CLUSTER)
    store.add_many([ORDERS, METERS])
    return store


@pytest.fixture
def shown() -> Callable[[object], str]:
    """All that repr, str and a look at the attributes show of an object and of our own objects inside it."""

    def _shown(thing: object) -> str:
        return "\n".join(_texts(thing, set()))

    return _shown


def _texts(thing: object, seen: set[int]) -> Iterator[str]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    yield repr(thing)
    yield str(thing)
    if type(thing).__name__ == "Secret":
        return  # opening it on purpose is what `reveal` is for
    if isinstance(thing, dict):
        for value in list(thing.values()):
            yield from _texts(value, seen)
    elif type(thing).__module__.startswith("security."):
        for name in _attributes(thing):
            yield from _texts(getattr(thing, name), seen)


def _attributes(thing: object) -> list[str]:
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*getattr(thing, "__dict__", {}), *(name for name in slots if hasattr(thing, name))]
