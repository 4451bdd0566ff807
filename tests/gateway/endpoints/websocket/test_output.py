"""What waits to be written: one write a turn, a bound, and no frame after the last."""

from __future__ import annotations

import asyncio

import pytest

from gateway.endpoints.send_buffers import SendBuffers
from gateway.endpoints.websocket_output import FLUSHES_PER_TURN_MAX, PIECE_BYTES, Flusher, Output


class Transport(asyncio.Transport):
    """Remembers what is written. A double, to have a buffer that fills when the test says so: `waiting` bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closing = False
        self.waiting = 0

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def write(self, data) -> None:
        self.writes.append(bytes(data))

    def writelines(self, list_of_data) -> None:
        self.writes.append(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closing

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        self.limits = (low, high)


class Made:
    def __init__(self, flusher: Flusher, *, bytes_max: int = 100, slow_reader_ms: int = 60_000) -> None:
        self.transport = Transport()
        self.slow = self.writable = self.full = self.cut = 0
        self.output = Output(
            self.transport,
            flusher,
            bytes_max=bytes_max,
            slow_reader_ms=slow_reader_ms,
            on_full=self.on_full,
            on_slow=self.on_slow,
            on_writable=self.on_writable,
            on_cut=self.on_cut,
        )

    def stall(self, size: int) -> None:
        """The kernel has not taken so many bytes of a write."""
        self.transport.waiting = size
        self.output.pause()
        self.output.write(b"x")
        self.output.flush()

    def drain(self) -> None:
        self.transport.waiting = 0
        self.output.resume()

    def on_full(self) -> None:
        self.full += 1

    def on_cut(self) -> None:
        self.cut += 1

    def on_slow(self) -> None:
        self.slow += 1

    def on_writable(self) -> None:
        self.writable += 1


@pytest.fixture
async def flusher() -> Flusher:
    return Flusher(asyncio.get_running_loop(), SendBuffers(1_000))


async def test_frames_of_a_turn_are_one_write(flusher):
    made = Made(flusher)
    for frame in (b"a", b"b", b"c"):
        made.output.write(frame)
    assert made.transport.writes == []
    await asyncio.sleep(0)
    assert made.transport.writes == [b"abc"]
    made.output.write(b"d")
    await asyncio.sleep(0)
    assert made.transport.writes == [b"abc", b"d"]


async def test_large_frames_are_not_copied_together(flusher):
    made = Made(flusher, bytes_max=1 << 20)
    made.output.write(b"x" * 40_000)
    made.output.write(b"y" * 40_000)
    await asyncio.sleep(0)
    assert made.transport.writes == [b"x" * 40_000 + b"y" * 40_000]


async def test_beyond_the_bound_it_is_not_writable_until_flushed(flusher):
    made = Made(flusher)
    made.output.write(b"x" * 99)
    assert made.output.writable
    made.output.write(b"x")
    assert not made.output.writable
    await asyncio.wait_for(made.output.drained(), 1)
    assert made.output.writable
    assert made.writable == 1


async def test_a_full_transport_holds_it_back(flusher):
    made = Made(flusher)
    assert made.transport.limits == (0, 0)
    made.stall(100)
    waiting = asyncio.create_task(made.output.drained())
    made.output.write(b"a reply")
    await asyncio.sleep(0.01)
    assert made.transport.writes == [b"x", b"a reply"]
    assert not made.output.writable
    assert not waiting.done()
    made.drain()
    await waiting
    assert made.output.writable
    assert made.full == 1


async def test_it_goes_on_at_a_quarter_of_the_bound(flusher):
    made = Made(flusher)
    made.stall(99)
    assert made.output.writable
    made.stall(100)
    for waiting, writable in ((99, False), (26, False), (25, True), (99, True), (100, False)):
        made.transport.waiting = waiting
        made.output.look()
        assert made.output.writable is writable, waiting


async def test_what_leaves_between_two_writes_is_seen(flusher, monkeypatch):
    monkeypatch.setattr("gateway.endpoints.websocket_output.SWEEP_S", 0.005)
    made = Made(flusher)
    made.stall(100)
    made.transport.waiting = 20
    await asyncio.wait_for(made.output.drained(), 1)
    assert flusher.buffers.held_bytes == 20
    made.output.close()
    assert flusher.buffers.held_bytes == 0


async def test_pressed_only_who_has_nothing_waiting_is_written_to(flusher):
    """The node's bound is 1,000 here: from 500 on."""
    many = [Made(flusher, bytes_max=200) for _ in range(6)]
    for made in many[:3]:
        made.stall(150)
        assert made.output.writable
    many[3].stall(50)
    assert flusher.buffers.pressed
    many[4].stall(10)
    assert [made.output.writable for made in many] == [True, True, True, False, False, True]
    for made in many[:3]:  # one piece each may have been on its way
        made.stall(150)
        assert not made.output.writable
    assert [made.cut for made in many] == [0] * 6
    many[0].drain()
    assert many[0].output.writable
    assert not flusher.buffers.pressed


async def test_beyond_the_nodes_bound_the_longest_waiting_are_cut(flusher):
    many = [Made(flusher, bytes_max=1_000) for _ in range(5)]
    for made in (many[2], many[0], many[1]):
        made.stall(300)
    assert flusher.buffers.held_bytes == 900
    many[3].stall(600)
    assert [made.cut for made in many] == [1, 0, 1, 0, 0]
    assert flusher.buffers.held_bytes == 900
    assert flusher.buffers.stats().cut == 2
    many[2].output.look()  # whatever its transport still says
    assert flusher.buffers.held_bytes == 900
    many[4].stall(2_000)  # more than all: it goes itself
    assert [made.cut for made in many] == [1, 1, 1, 1, 1]
    assert flusher.buffers.held_bytes == 0


async def test_pieces_do_not_gather(flusher):
    made = Made(flusher, bytes_max=1 << 20)
    made.output.write_piece(b"x" * (PIECE_BYTES - 1))
    assert made.transport.writes == []
    made.output.write_piece(b"y")
    assert [len(written) for written in made.transport.writes] == [PIECE_BYTES]


async def test_who_does_not_drain_in_time_is_slow(flusher):
    made, quick = Made(flusher, slow_reader_ms=10), Made(flusher, slow_reader_ms=10)
    made.stall(100)
    quick.stall(100)
    quick.drain()
    await asyncio.sleep(0.05)
    assert (made.slow, quick.slow) == (1, 0)


async def test_pausing_again_does_not_put_the_deadline_off(flusher):
    made = Made(flusher, slow_reader_ms=20)
    for _ in range(10):
        made.stall(100)
        await asyncio.sleep(0.005)
    assert made.slow == 1


async def test_nothing_follows_the_seal(flusher):
    made = Made(flusher)
    made.output.write(b"last")
    made.output.seal()
    made.output.write(b"late")
    await asyncio.sleep(0)
    assert made.transport.writes == [b"last"]


async def test_a_closing_transport_is_left_alone(flusher):
    made = Made(flusher)
    made.output.write(b"x")
    made.transport.closing = True
    await asyncio.sleep(0)
    assert made.transport.writes == []


async def test_a_large_fan_out_lets_the_loop_breathe(flusher):
    many = [Made(flusher) for _ in range(2 * FLUSHES_PER_TURN_MAX + 1)]
    for made in many:
        made.output.write(b"x")
    written = []
    for _ in range(4):
        await asyncio.sleep(0)
        written.append(sum(bool(made.transport.writes) for made in many))
    assert written[:3] == [FLUSHES_PER_TURN_MAX, 2 * FLUSHES_PER_TURN_MAX, len(many)]
