"""The message of PLAIN."""

from __future__ import annotations

import pytest

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.sasl import PLAIN_BYTES_MAX, read_plain


def test_three_parts() -> None:
    found = read_plain(b"\0token\0secret")
    assert (found.acts_as, found.name, found.password) == ("", "token", "secret")
    assert "secret" not in repr(found)


@pytest.mark.parametrize("message", [b"", b"\0", b"a\0b", b"\0a\0b\0c", b"\0\xff\0b"])
def test_malformed(message: bytes) -> None:
    with pytest.raises(MessageInvalid) as refusal:
        read_plain(message)
    assert "b" not in refusal.value.reason.split()


def test_the_bound() -> None:
    password = "x" * (PLAIN_BYTES_MAX - 2)
    assert read_plain(b"\0\0" + password.encode()).password == password
    with pytest.raises(MessageInvalid, match=str(PLAIN_BYTES_MAX)):
        read_plain(b"\0\0x" + password.encode())
