"""A short seeded run of the fuzz target `tests/fuzz/fuzz_websocket.py`; the long one is the campaign's."""

from __future__ import annotations

import importlib.util
import json
import random
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

_TARGET = Path(__file__).parents[2] / "fuzz" / "fuzz_websocket.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_websocket", _TARGET)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz = _load()


def client_frame(choose: random.Random) -> bytes:
    """Mostly right, so that the run gets past the first check."""
    opcode = choose.choice([0, 1, 1, 1, 2, 3, 8, 9, 10])
    payload = choose.choice(
        [b"", b"{}", b"x" * choose.randrange(70), "\u00fc".encode(), b"\xff", struct.pack("!H", 1000), b"x" * 600]
    )
    mask = choose.randbytes(4)
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else struct.pack("!BH", 0xFE, len(payload))
    first = (0x80 if choose.random() < 0.7 else 0) | opcode | (0x40 if choose.random() < 0.03 else 0)
    return bytes([first]) + size + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


@pytest.mark.parametrize("seed", range(20))
def test_frames_that_are_almost_right(seed: int) -> None:
    choose = random.Random(seed)
    for _ in range(40):
        stream = b"".join(client_frame(choose) for _ in range(choose.randrange(1, 12)))
        if choose.random() < 0.3:
            place = choose.randrange(len(stream))
            stream = stream[:place] + choose.randbytes(1) + stream[place + 1 :]
        fuzz.one_input(bytes([choose.randrange(256)]) + stream)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    fuzz.one_input(data)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
MEMBERS = [
    "op",
    "ref",
    "sub",
    "address",
    "topic",
    "key",
    "key64",
    "value",
    "text",
    "value64",
    "records",
    "from",
    "credit",
    "acks",
]
NAMES = st.sampled_from(["publish", "subscribe", "unsubscribe", "credit", "auth", "ping", "orders/k", "earliest", "AP8="])


@given(st.lists(st.dictionaries(st.sampled_from(MEMBERS), NAMES | JSON_VALUES, max_size=6), min_size=1, max_size=3), st.data())
def test_operations_that_are_almost_right(operations: list[dict[str, Any]], data: st.DataObject) -> None:
    message = json.dumps(operations if len(operations) > 1 else operations[0], ensure_ascii=False).encode()
    fuzz.check_message(message)
    cut = data.draw(st.integers(0, len(message)))
    fuzz.check_message(message[:cut].decode(errors="ignore").encode())


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    fuzz.check_message(text.encode(errors="replace"))
