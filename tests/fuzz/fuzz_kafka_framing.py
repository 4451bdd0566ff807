"""Fuzz target: a stream of Kafka frames, cut where the input says; whole and in pieces it has to come to the same."""

from __future__ import annotations

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.framing import Frames
from gateway.wire.kafka.sasl import read_plain
from tests.fuzz.refusals import check_refusal

FRAME_BYTES_MAX = 100_000

CORPUS = [
    b"\x05\x00\x00\x00\x03abc\x00\x00\x00\x00",
    b"\x01\x00\x00\x00\x09\x00alice\x00pw",
    b"\xff\x00\x01\x86\xa1",
    b"\x09" + (30_000).to_bytes(4, "big") + bytes(30_000) + b"\x00\x00\x00\x01x",
]


def read(data: bytes, step: int) -> list[bytes | str]:
    """The frames, and at the end the refusal if there was one."""
    frames, found = Frames(FRAME_BYTES_MAX), list[bytes | str]()
    position = 0
    try:
        while True:
            while (frame := frames.next()) is not None:
                found.append(bytes(frame))
            frames.settle()
            if position >= len(data):
                return found
            assert frames.room
            piece = data[position : position + step]
            buffer = frames.buffer()[: len(piece)]
            assert buffer
            buffer[:] = piece[: len(buffer)]
            frames.updated(len(buffer))
            position += len(buffer)
    except MessageInvalid as error:
        check_refusal(error)
        return [*found, error.reason]


def one_input(data: bytes) -> None:
    if not data:
        return
    whole, pieces = read(data[1:], len(data)), read(data[1:], 1 + data[0] * 7)
    assert whole == pieces
    for frame in whole:
        if isinstance(frame, bytes):
            try:
                credentials = read_plain(frame)
            except MessageInvalid as error:
                check_refusal(error)
                continue
            assert "\0" not in credentials.password
