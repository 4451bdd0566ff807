"""The messages of OAUTHBEARER: RFC 7628's and Kafka's clients' own, and what is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.oauthbearer import EXTENSIONS_MAX, MESSAGE_BYTES_MAX, challenge, read_bearer

TOKEN = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9."
JAVA = f"n,,\x01auth=Bearer {TOKEN}\x01\x01".encode()
EXTENDED = f"n,a=al=2Cice=3D,\x01auth=Bearer {TOKEN}\x01logicalCluster=lkc-1\x01pool=a b\tc\r\n=d\x01\x01".encode()


def test_as_the_clients_send_it() -> None:
    found = read_bearer(JAVA)
    assert (found.token, found.acts_as, found.extensions) == (TOKEN, "", {})
    assert TOKEN not in repr(found)


def test_name_and_extensions() -> None:
    found = read_bearer(EXTENDED)
    assert (found.token, found.acts_as) == (TOKEN, "al,ice=")
    assert found.extensions == {"logicalCluster": "lkc-1", "pool": "a b\tc\r\n=d"}
    assert "lkc-1" not in repr(found)


def test_the_example_of_the_rfc() -> None:
    """RFC 7628, section 4.1: host and port are pairs like others."""
    token = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="
    found = read_bearer(f"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01auth=Bearer {token}\x01\x01".encode())
    assert (found.token, found.acts_as) == (token, "user@example.com")
    assert found.extensions == {"host": "server.example.com", "port": "143"}


@pytest.mark.parametrize("said", [b"y,,\x01auth=bearer   x\x01\x01", b"n,,\x01auth=BEARER x==\x01\x01"])
def test_what_may_be_written_otherwise(said: bytes) -> None:
    assert read_bearer(said).token.startswith("x")


HOSTILE = [
    b"",
    b"\x01",
    b"\x01\x01",
    b"n,,",
    b"n,,\x01",
    b"n,,\x01\x01",
    b"n,,\x01auth=Bearer x",
    b"n,,\x01auth=Bearer x\x01",
    b"n,,auth=Bearer x\x01\x01",
    b"n,,\x01auth=Bearer x\x01\x01\x01",
    b"n,,\x01\x01auth=Bearer x\x01\x01",
    b"n,,\x01auth=Bearer x\x01\x01n,,\x01auth=Bearer x\x01\x01",
    b"n,\x01auth=Bearer x\x01\x01",
    b"n,,,\x01auth=Bearer x\x01\x01",
    b"z,,\x01auth=Bearer x\x01\x01",
    b"p=tls-exporter,,\x01auth=Bearer x\x01\x01",
    b"F,n,,\x01auth=Bearer x\x01\x01",
    b"n,a=,\x01auth=Bearer x\x01\x01",
    b"n,a=b=c,\x01auth=Bearer x\x01\x01",
    b"n,a=b=2c,\x01auth=Bearer x\x01\x01",
    b"n,a=b\0,\x01auth=Bearer x\x01\x01",
    b"n,a=b\n,\x01auth=Bearer x\x01\x01",
    b"n,n=b,\x01auth=Bearer x\x01\x01",
    b"n,,\x01auth=Bearer\x01\x01",
    b"n,,\x01auth=Bearer \x01\x01",
    b"n,,\x01auth=Bearer x y\x01\x01",
    b"n,,\x01auth=Bearer x \x01\x01",
    b"n,,\x01auth= Bearer x\x01\x01",
    b"n,,\x01auth=Bearer\tx\x01\x01",
    b"n,,\x01auth=Bearer =\x01\x01",
    b"n,,\x01auth=Bearer x=y\x01\x01",
    b"n,,\x01auth=Bearer x\n\x01\x01",
    b"n,,\x01auth=Basic x\x01\x01",
    b"n,,\x01Auth=Bearer x\x01\x01",
    b"n,,\x01auth=Bearer x\x01auth=Bearer y\x01\x01",
    b"n,,\x01auth=Bearer x\x01a=b\x01a=c\x01\x01",
    b"n,,\x01auth=Bearer x\x01a=\x01\x01",
    b"n,,\x01auth=Bearer x\x01=b\x01\x01",
    b"n,,\x01auth=Bearer x\x01ab\x01\x01",
    b"n,,\x01auth=Bearer x\x01a1=b\x01\x01",
    b"n,,\x01auth=Bearer x\x01a-b=c\x01\x01",
    b"n,,\x01auth=Bearer x\x01a=\x00\x01\x01",
    b"n,,\x01auth=Bearer x\x01a=\x7f\x01\x01",
    b"n,,\x01auth=Bearer \xff\x01\x01",
    "n,,\x01auth=Bearer é\x01\x01".encode(),
    "n,,\x01auth=Bearer x\x01a=é\x01\x01".encode(),
    "n,,\x01auth=Bearer \u0663\x01\x01".encode(),
]  # fmt: skip


@pytest.mark.parametrize("message", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_none(message: bytes) -> None:
    with pytest.raises(MessageInvalid):
        read_bearer(message)


@pytest.mark.parametrize("message", [JAVA, EXTENDED])
def test_every_truncation(message: bytes) -> None:
    for end in range(len(message)):
        with pytest.raises(MessageInvalid) as refusal:
            read_bearer(message[:end])
        assert TOKEN[:8] not in refusal.value.reason


def test_the_bounds() -> None:
    token = "x" * (MESSAGE_BYTES_MAX - len("n,,\x01auth=Bearer \x01\x01"))
    assert read_bearer(f"n,,\x01auth=Bearer {token}\x01\x01".encode()).token == token
    with pytest.raises(MessageInvalid, match=str(MESSAGE_BYTES_MAX)):
        read_bearer(f"n,,\x01auth=Bearer x{token}\x01\x01".encode())
    pairs = [f"{'k' * (1 + number)}=v\x01" for number in range(EXTENSIONS_MAX)]
    assert len(read_bearer(f"n,,\x01auth=Bearer x\x01{''.join(pairs)}\x01".encode()).extensions) == EXTENSIONS_MAX
    with pytest.raises(MessageInvalid, match=str(EXTENSIONS_MAX)):
        read_bearer(f"n,,\x01auth=Bearer x\x01{''.join(pairs)}more=v\x01\x01".encode())


@given(
    st.from_regex(r"[A-Za-z0-9._~+/-]+=*", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20),
    st.dictionaries(
        st.from_regex(r"[A-Za-z]+", fullmatch=True).filter(lambda key: key != "auth"),
        st.from_regex(r"[ -~]+", fullmatch=True),
        max_size=5,
    ),
)
def test_what_is_written_is_read(token: str, name: str, extensions: dict[str, str]) -> None:
    said = f"a={name.replace('=', '=3D').replace(',', '=2C')}" if name else ""
    pairs = "".join(f"{key}={value}\x01" for key, value in extensions.items())
    found = read_bearer(f"n,{said},\x01{pairs}auth=Bearer {token}\x01\x01".encode())
    assert (found.token, found.acts_as, found.extensions) == (token, name, extensions)


def test_a_challenge_is_what_the_rfc_says() -> None:
    assert json.loads(challenge()) == {"status": "invalid_token"}
