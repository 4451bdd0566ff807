"""Fuzz target: compressed bodies in any pieces, and what a caller says it accepts.

However a body is cut, the same comes out; nothing comes out beyond the ratio; and a whole stream of the library's own is read.
"""

from __future__ import annotations

import zlib

import zstandard

from gateway.endpoints.compression import (
    CODINGS,
    GZIP,
    RATIO_FREE_BYTES,
    ZSTD,
    Inflater,
    choose,
    compress,
    compressible,
)
from gateway.errors import BodyMalformed, BodyTooLarge, ContentEncodingUnsupported
from tests.fuzz.refusals import check_refusal

RATIO_MAX = 20
_TEXT = b'{"value":{"temperature":21.5}}' * 20

CORPUS = [
    b"\x00" + compress(GZIP, _TEXT),
    b"\x01" + compress(ZSTD, _TEXT),
    b"\x00" + compress(GZIP, b"") * 40,
    b"\x01" + compress(ZSTD, b"") * 40,
    b"\x00" + zlib.compress(bytes(2_000_000), 9, wbits=31),
    b"\x01" + zstandard.ZstdCompressor(level=19).compress(bytes(2_000_000)),
    b"\x01" + zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(_TEXT),
    b"\x05gzip;q=0.5, zstd;q=1, *;q=0",
    b"\x05identity;q=1, br, *;q=nan",
    b"\x05application/cloudevents+json; charset=utf-8",
]


def one_input(data: bytes) -> None:
    plan, body = (data[0], data[1:]) if data else (0, b"")
    if plan & 4:
        assert choose(body) in (None, *CODINGS)
        compressible(body)
        _unknown(body)
    for coding in CODINGS:
        assert _inflate(coding, compress(coding, body), 7) == body
    coding = ZSTD if plan & 1 else GZIP
    whole, pieces = _inflate(coding, body, len(body) or 1), _inflate(coding, body, (plan >> 3) + 1)
    # libzstd checks the size that an empty frame announces only where it gets the frame in one piece; it is refused or empty.
    one_sided = coding == ZSTD and (whole is None or pieces is None)
    assert one_sided or whole == pieces, "the same body in other pieces is another one"


def _unknown(name: bytes) -> None:
    try:
        Inflater(name, RATIO_MAX)
    except ContentEncodingUnsupported as error:
        check_refusal(error, len(name) * 4 + 400)


def _inflate(coding: bytes, body: bytes, step: int) -> bytes | None:
    """None where it is refused."""
    inflater = Inflater(coding, RATIO_MAX)
    made = 0
    pieces = []
    try:
        for start in range(0, len(body), step):
            for piece in inflater.pieces(body[start : start + step]):
                made += len(piece)
                assert made <= RATIO_FREE_BYTES + RATIO_MAX * len(body), "beyond the ratio"
                pieces.append(piece)
        inflater.finish()
    except (BodyMalformed, BodyTooLarge) as error:
        check_refusal(error)
        return None
    return b"".join(pieces)
