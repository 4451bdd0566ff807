"""Fuzz target: a SCRAM exchange, its two client messages cut from the input at the first line break."""

from __future__ import annotations

from security.errors import CredentialsInvalid
from security.identity.scram import HASHES, ScramExchange, ScramSecret
from tests.fuzz.refusals import check_refusal

CORPUS = [
    b"n,,n=alice,r=theirs\nc=biws,r=theirsours,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
    b"y,a=alice,n=alice,r=theirs,x=ext\nc=eSxhPWFsaWNlLA==,r=theirsours,x=ext,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
    b"p=tls-exporter,,n=alice,r=theirs\n",
    b"n,,n=a=2Cb=3Dc,r=theirs\nc=biws,r=theirsours",
    b"n,,m=ext,n=alice,r=theirs\n",
]


def one_input(data: bytes) -> None:
    first, _, final = data.partition(b"\n")
    for mechanism, hash_of in HASHES.items():
        size = hash_of().digest_size
        # Nobody knows a text whose hash is this: whatever is proved here is a mistake of ours.
        secret = ScramSecret(4_096, b"salt", b"\x01" * size, b"\x02" * size)
        exchange = ScramExchange(mechanism, lambda _, name, secret=secret: secret if name == "alice" else None, "ours", bytes(32))
        try:
            answer = exchange.first(first)
            assert answer.isascii()
            assert len(answer) < len(first) + 200
            last, proof = exchange.final(final)
        except CredentialsInvalid as error:
            check_refusal(error)
            continue
        assert not proof.proved
        assert last == b""
