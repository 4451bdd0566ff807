"""Compressed bodies in, compressed answers out; what is broken, cut, or grows like no data does."""

from __future__ import annotations

import gzip
import itertools
import json
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gateway.endpoints.compression import (
    GZIP_PIECE_BYTES,
    RATIO_FREE_BYTES,
    STREAMS_MAX,
    ZSTD_SLICE_BYTES,
    Inflater,
    choose,
    compress,
    compressible,
)
from gateway.endpoints.exchange import THREAD_BYTES
from gateway.errors import BodyMalformed, BodyTooLarge, ContentEncodingUnsupported

RECORDS = "/v1/topics/orders/records"
NDJSON = {"content-type": "application/x-ndjson"}
MIB = 1024 * 1024
# The most that one slice of zstd can become: a block of 128 KiB from 4 bytes.
ZSTD_PIECE_BYTES = (ZSTD_SLICE_BYTES // 4 + 1) * 128 * 1024


def packed(coding: str, body: bytes) -> bytes:
    return gzip.compress(body) if coding == "gzip" else zstandard.compress(body)


def unpacked(coding: str, body: bytes) -> bytes:
    if coding == "gzip":
        return gzip.decompress(body)
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


def inflate(coding: str, *parts: bytes, ratio_max: int = 200) -> bytes:
    inflater = Inflater(coding.encode(), ratio_max)
    made = b"".join(piece for part in parts for piece in inflater.pieces(part))
    inflater.finish()
    return made


def zstd_runs(blocks: int) -> bytes:
    """A frame of `blocks` run-length blocks, 4 bytes each, that become 128 KiB each."""
    head = bytes.fromhex("28b52ffd") + bytes([0x00, 13 << 3])
    block = ((128 * 1024 << 3) | (1 << 1)).to_bytes(3, "little") + b"a"
    last = ((128 * 1024 << 3) | (1 << 1) | 1).to_bytes(3, "little") + b"a"
    return head + block * (blocks - 1) + last


both = pytest.mark.parametrize("coding", ["gzip", "zstd"])


@both
class TestInflater:
    @given(body=st.binary(max_size=5_000), cuts=st.lists(st.integers(0, 5_000), max_size=5))
    def test_any_body_in_any_pieces(self, coding: str, body: bytes, cuts: list[int]) -> None:
        whole = packed(coding, body)
        places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
        assert inflate(coding, *(whole[a:b] for a, b in itertools.pairwise(places))) == body

    def test_byte_by_byte_and_every_truncation(self, coding: str) -> None:
        body = b"".join(b"record %d " % number for number in range(200))
        whole = packed(coding, body)
        assert inflate(coding, *(whole[at : at + 1] for at in range(len(whole)))) == body
        for end in range(1, len(whole)):
            with pytest.raises(BodyMalformed, match="cut off"):
                inflate(coding, whole[:end])

    def test_several_streams_are_one_body(self, coding: str) -> None:
        assert inflate(coding, packed(coding, b"first ") + packed(coding, b"second")) == b"first second"
        assert inflate(coding, packed(coding, b"first "), packed(coding, b"second")) == b"first second"

    def test_not_so_many_of_them(self, coding: str) -> None:
        empty = packed(coding, b"")
        assert inflate(coding, empty * STREAMS_MAX) == b""
        with pytest.raises(BodyMalformed, match=f"more than {STREAMS_MAX}"):
            inflate(coding, empty * (STREAMS_MAX + 1))

    def test_nothing_is_nothing(self, coding: str) -> None:
        assert inflate(coding) == b""

    def test_what_is_no_stream(self, coding: str) -> None:
        whole = packed(coding, b"some text" * 50)
        for hostile in (b"x", b"plain text", whole[1:], whole + b"trailing bytes", b"\x00" * 100):
            with pytest.raises(BodyMalformed):
                inflate(coding, hostile)

    def test_growth_is_bounded(self, coding: str) -> None:
        bomb = packed(coding, bytes(64 * MIB))
        inflater, made, largest = Inflater(coding.encode(), 200), 0, 0

        def burst() -> None:
            nonlocal made, largest
            for at in range(0, len(bomb), 65_536):
                for piece in inflater.pieces(bomb[at : at + 65_536]):
                    made, largest = made + len(piece), max(largest, len(piece))

        with pytest.raises(BodyTooLarge, match="compression_ratio_max"):
            burst()
        assert made <= RATIO_FREE_BYTES + 200 * 65_536
        assert largest <= max(GZIP_PIECE_BYTES, ZSTD_PIECE_BYTES)

    def test_small_bodies_may_grow(self, coding: str) -> None:
        body = bytes(RATIO_FREE_BYTES)
        assert inflate(coding, packed(coding, body), ratio_max=1) == body


def test_the_worst_zstd_frame_comes_in_bounded_pieces() -> None:
    inflater = Inflater(b"zstd", 1_000_000)
    sizes = [len(piece) for piece in inflater.pieces(zstd_runs(1_000))]
    inflater.finish()
    assert sum(sizes) == 1_000 * 128 * 1024
    assert max(sizes) <= ZSTD_PIECE_BYTES


def test_a_zstd_window_that_would_take_the_memory() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(BodyMalformed, match="too much memory"):
        inflate("zstd", packer.compress(bytes(1000)) + packer.flush())


def test_names_of_codings() -> None:
    for name in (b"gzip", b"GZIP", b"x-gzip", b" gzip "):
        Inflater(name, 1)
    for name in (b"br", b"deflate", b"gzip, gzip", b"gzip,zstd", b"", b"compress", b"\xff", b"x" * 10_000):
        with pytest.raises(ContentEncodingUnsupported) as caught:
            Inflater(name, 1)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", None),
        ("gzip", b"gzip"),
        ("zstd", b"zstd"),
        ("gzip, deflate, br, zstd", b"zstd"),
        ("gzip;q=1.0, zstd;q=0.5", b"gzip"),
        ("GZIP", b"gzip"),
        ("*", b"zstd"),
        ("zstd;q=0, *", b"gzip"),
        ("*;q=0", None),
        ("gzip;q=0", None),
        ("identity", None),
        ("identity;q=1, gzip;q=0.5", None),
        ("identity;q=0.5, gzip", b"gzip"),
        ("br", None),
        ("gzip;q=high", None),
        (";;;,,,=", None),
        ("gzip;level=9;q=0.2", b"gzip"),
    ],
)
def test_the_callers_choice(accepted: str, chosen: bytes | None) -> None:
    assert choose(accepted.encode()) == chosen


def test_what_is_worth_it() -> None:
    for kind in (b"application/json", b"text/plain; charset=utf-8", b"application/x-ndjson", b"image/svg+xml", b"a/b+json"):
        assert compressible(kind)
    for kind in (b"application/octet-stream", b"image/png", b"application/zip", b""):
        assert not compressible(kind)


@both
class TestIn:
    async def test_publishing(self, door: Any, coding: str) -> None:
        lines = b"\n".join(b'{"key":"k%d","value":{"n":%d}}' % (number, number) for number in range(1_000))
        answer = await door.call("POST", RECORDS, packed(coding, lines), headers=NDJSON | {"content-encoding": coding})
        assert (answer.status, len(answer.json["records"])) == (200, 1_000)

    async def test_a_raw_value_is_stored_unpacked(self, door: Any, coding: str) -> None:
        headers = {"content-type": "text/plain", "content-encoding": coding}
        assert (await door.call("POST", "/v1/records/orders/k", packed(coding, b"as it was"), headers=headers)).status == 200
        assert (await door.get("/v1/records/orders/k")).body == b"as it was"

    async def test_documents(self, door: Any, coding: str) -> None:
        headers = {"content-type": "application/json", "content-encoding": coding}
        assert (await door.call("POST", "/v1/topics", packed(coding, b'{"name":"orders"}'), headers=headers)).status == 201

    async def test_a_bomb(self, open_door: Any, coding: str) -> None:
        door = open_door(body_bytes_max=MIB)
        headers = NDJSON | {"content-encoding": coding}
        answer = await door.call("POST", RECORDS, packed(coding, b" " * 64 * MIB), headers=headers)
        assert (answer.status, answer.slug) == (413, "body-too-large")
        assert door.app._bodies.held_bytes == 0

    async def test_more_than_a_body_may_be(self, open_door: Any, coding: str) -> None:
        door = open_door(body_bytes_max=1_000, compression_ratio_max=10_000)
        headers = NDJSON | {"content-encoding": coding}
        answer = await door.call("POST", RECORDS, packed(coding, b" " * 1_001), headers=headers)
        assert (answer.status, answer.problem["limit_name"]) == (413, "rest.body_bytes_max")

    async def test_broken(self, door: Any, coding: str) -> None:
        whole = packed(coding, b'{"value":1}')
        for hostile in (whole[:-1], b"{}", b"\xff" * 100):
            answer = await door.call("POST", RECORDS, hostile, headers=NDJSON | {"content-encoding": coding})
            assert (answer.status, answer.slug) == (400, "body-malformed")
        assert (await door.get("/v1/topics")).json == {"topics": []}


async def test_codings_that_nobody_speaks_here(door: Any) -> None:
    answer = await door.call("POST", RECORDS, b"x", headers=NDJSON | {"content-encoding": "br"})
    assert (answer.status, answer.slug) == (415, "content-encoding-unsupported")
    assert answer.headers["accept-encoding"] == "zstd, gzip"


@both
class TestOut:
    async def test_a_large_page(self, door: Any, coding: str) -> None:
        await door.publish("orders", *[("k", f"text {number} " * 20) for number in range(200)])
        plain = await door.get(RECORDS)
        answer = await door.get(RECORDS, headers={"accept-encoding": coding})
        assert (answer.headers["content-encoding"], answer.headers["vary"]) == (coding, "accept-encoding")
        assert len(answer.body) == int(answer.headers["content-length"]) < len(plain.body) // 3
        assert json.loads(unpacked(coding, answer.body)) == plain.json
        assert plain.headers["vary"] == "accept-encoding"
        assert "content-encoding" not in plain.headers

    async def test_a_page_that_takes_a_while(self, door: Any, coding: str) -> None:
        """Beyond THREAD_BYTES it is not the loop that compresses."""
        await door.publish("orders", ("k", "x" * (2 * THREAD_BYTES)))
        answer = await door.get(RECORDS, headers={"accept-encoding": coding})
        assert len(answer.body) < THREAD_BYTES // 10
        assert len(json.loads(unpacked(coding, answer.body))["records"][0]["text"]) == 2 * THREAD_BYTES
        assert door.app._bodies.held_bytes == 0

    async def test_small_answers_stay(self, door: Any, coding: str) -> None:
        answer = await door.get("/v1/topics", headers={"accept-encoding": coding})
        assert not {"content-encoding", "vary"} & set(answer.headers)

    async def test_what_is_packed_already_stays(self, door: Any, coding: str) -> None:
        headers = {"content-type": "application/zip"}
        await door.call("POST", "/v1/records/orders/k", bytes(100_000), headers=headers)
        answer = await door.get("/v1/records/orders/k", headers={"accept-encoding": coding})
        assert (len(answer.body), answer.headers.get("content-encoding")) == (100_000, None)

    async def test_secrets_stay(self, open_door: Any, coding: str) -> None:
        door = open_door(compress_bytes_min=1)
        made = await door.post("/v1/tokens", {"name": "n", "roles": ["admin"]}, headers={"accept-encoding": coding})
        assert (made.status, made.headers.get("content-encoding")) == (201, None)
        assert (await door.get("/v1/tokens", headers={"accept-encoding": coding})).headers["content-encoding"] == coding

    async def test_event_streams_stay(self, open_door: Any, coding: str) -> None:
        door = open_door(compress_bytes_min=1)
        await door.publish("orders", ("k", "text " * 1_000))
        call = door.begin("GET", "/v1/topics/orders/events?from=earliest", headers={"accept-encoding": coding})
        await call.until(b"text text")
        assert b"content-encoding" not in dict(call.headers)
        call.leave()
        await call.task

    @given(body=st.binary(max_size=2_000))
    def test_there_and_back(self, coding: str, body: bytes) -> None:
        assert inflate(coding, compress(coding.encode(), body)) == body


def test_gzip_trailers_are_checked() -> None:
    whole = bytearray(gzip.compress(b"some text"))
    whole[-5] ^= 1
    with pytest.raises(BodyMalformed, match="incorrect"):
        inflate("gzip", bytes(whole))
