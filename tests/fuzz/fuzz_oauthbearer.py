"""Fuzz target: the first message of OAUTHBEARER. What is taken is written anew, and has to come to the same."""

from __future__ import annotations

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.oauthbearer import read_bearer
from tests.fuzz.refusals import check_refusal

CORPUS = [
    b"n,,\x01auth=Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.\x01\x01",
    b"n,a=al=2Cice=3D,\x01auth=Bearer x\x01logicalCluster=lkc-1\x01pool=a b\t=c\x01\x01",
    b"y,,\x01host=server\x01port=143\x01auth=bearer dF9dft4qmTc2==\x01\x01",
    b"p=tls-exporter,,\x01auth=Bearer x\x01\x01",
    b"\x01",
]


def one_input(data: bytes) -> None:
    try:
        found = read_bearer(data)
    except MessageInvalid as error:
        check_refusal(error)
        return
    assert found.token.isascii()
    assert found.token
    assert "auth" not in found.extensions
    name = found.acts_as.replace("=", "=3D").replace(",", "=2C")
    pairs = "".join(f"{key}={value}\x01" for key, value in found.extensions.items())
    again = f"n,{f'a={name}' if name else ''},\x01auth=Bearer {found.token}\x01{pairs}\x01"
    assert read_bearer(again.encode()) == found
