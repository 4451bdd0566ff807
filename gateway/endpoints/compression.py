"""Content codings (RFC 9110, 8.4) of bodies that come compressed and of large answers: gzip (RFC 1952), zstd (RFC 8878).

A compressed body may claim to be any size. It is unpacked piece by piece as it arrives, each piece bounded, and the sum counts
against the bounds of the body as if it had come so; `rest.compression_ratio_max` ends what grows like no data does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import zstandard

from gateway.errors import BodyMalformed, BodyTooLarge, ContentEncodingUnsupported

GZIP, ZSTD = b"gzip", b"zstd"
CODINGS = (ZSTD, GZIP)
"""Those spoken, the preferred one first: at level 1 zstd makes 500 MB/s of JSON to a fifteenth, gzip 140 MB/s to a fifth."""

# Streams in one body: concatenated gzip members and zstd frames are legal, and empty ones cost more than they hold.
STREAMS_MAX = 1_024
# What the ratio is not asked about: small bodies of one letter are no attack.
RATIO_FREE_BYTES = 64 * 1024
# One piece at most: gzip by its own bound; zstd blocks unpack to 128 KiB from 4 bytes (RFC 8878, 3.1.1.2), so 64 of them.
GZIP_PIECE_BYTES = 64 * 1024
ZSTD_SLICE_BYTES = 256
# What every decoder supports (RFC 8878, 3.1.1.1.2), and so what encoders may use with a peer they do not know.
ZSTD_WINDOW_BYTES = 8 * 1024 * 1024

LEVEL = 1

_TEXTUAL = (
    b"application/json",
    b"application/x-ndjson",
    b"application/cloudevents",
    b"application/xml",
    b"application/javascript",
)


class _Stream(Protocol):
    """One gzip member or zstd frame. `rest` is what came after its end."""

    ended: bool
    rest: bytes

    def pieces(self, part: bytes) -> Iterator[bytes]: ...


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self.ended, self.rest = False, b""

    def pieces(self, part: bytes) -> Iterator[bytes]:
        while True:
            piece = self._stream.decompress(part, GZIP_PIECE_BYTES)
            self.ended, self.rest = self._stream.eof, self._stream.unused_data
            yield piece
            part = self._stream.unconsumed_tail
            if self.ended or (not part and len(piece) < GZIP_PIECE_BYTES):
                return


class _Zstd:
    def __init__(self) -> None:
        self._stream = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()
        self.ended, self.rest = False, b""

    def pieces(self, part: bytes) -> Iterator[bytes]:
        for begin in range(0, len(part), ZSTD_SLICE_BYTES):
            end = begin + ZSTD_SLICE_BYTES
            piece = self._stream.decompress(part[begin:end])
            if self._stream.eof:
                self.ended, self.rest = True, self._stream.unused_data + part[end:]
            yield piece
            if self.ended:
                return


_STREAMS: Mapping[bytes, Callable[[], _Stream]] = {GZIP: _Gzip, b"x-gzip": _Gzip, ZSTD: _Zstd}


class Inflater:
    """A body in one coding. Call `pieces` with what arrives and use up what it yields, then `finish`."""

    def __init__(self, coding: bytes, ratio_max: int) -> None:
        """Raises ContentEncodingUnsupported. Names are case-insensitive; x-gzip is gzip (RFC 9110, 8.4.1.3)."""
        self.coding = coding.strip().lower()
        make = _STREAMS.get(self.coding)
        if make is None:
            raise ContentEncodingUnsupported(coding.decode("latin-1"), [known.decode() for known in CODINGS])
        self._make, self._ratio_max = make, ratio_max
        self._stream: _Stream | None = None
        self._streams = self._came_bytes = self._made_bytes = 0

    def pieces(self, part: bytes) -> Iterator[bytes]:
        """Raises BodyMalformed, BodyTooLarge."""
        self._came_bytes += len(part)
        while part:
            stream = self._stream = self._current()
            try:
                for piece in stream.pieces(part):
                    self._count(len(piece))
                    yield piece
            except (zlib.error, zstandard.ZstdError) as error:
                raise BodyMalformed(f"it is no {self.coding.decode()}: {error}") from None
            part = stream.rest if stream.ended else b""

    def finish(self) -> None:
        """Nothing more comes. Raises BodyMalformed where the stream is cut off."""
        if self._stream is not None and not self._stream.ended:
            raise BodyMalformed(f"its {self.coding.decode()} stream is cut off")

    def _current(self) -> _Stream:
        if self._stream is not None and not self._stream.ended:
            return self._stream
        self._streams += 1
        if self._streams > STREAMS_MAX:
            raise BodyMalformed(f"it is more than {STREAMS_MAX} {self.coding.decode()} streams")
        return self._make()

    def _count(self, size: int) -> None:
        self._made_bytes += size
        if self._made_bytes > RATIO_FREE_BYTES + self._ratio_max * self._came_bytes:
            raise BodyTooLarge("rest.compression_ratio_max", self._ratio_max, "bytes for each compressed byte")


def choose(accepted: bytes) -> bytes | None:
    """The coding for an answer, by the caller's Accept-Encoding (RFC 9110, 12.5.3); None to leave it as it is."""
    weights: dict[bytes, float] = {}
    for part in accepted.lower().split(b","):
        name, *parameters = part.split(b";")
        weights[name.strip()] = _weight(parameters)
    others = weights.get(b"*", 0.0)
    # max() takes the first of equals.
    best = max(CODINGS, key=lambda coding: weights.get(coding, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get(b"identity", 0.0) else None


def compressible(media_type: bytes) -> bool:
    """Text of any kind; images and archives have it behind them."""
    essence = media_type.partition(b";")[0].strip().lower()
    return essence.startswith((b"text/", *_TEXTUAL)) or essence.endswith((b"+json", b"+xml"))


def compress(coding: bytes, body: bytes) -> bytes:
    if coding == ZSTD:
        return zstandard.ZstdCompressor(level=LEVEL).compress(body)
    return zlib.compress(body, LEVEL, wbits=16 + zlib.MAX_WBITS)


def _weight(parameters: Iterable[bytes]) -> float:
    for parameter in parameters:
        name, _, text = parameter.partition(b"=")
        if name.strip() == b"q":
            try:
                return float(text)
            except ValueError:
                return 0.0
    return 1.0
