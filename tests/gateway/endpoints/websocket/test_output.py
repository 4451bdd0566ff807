"""What waits to be written: one write a turn, a bound, and no frame after the last."""

from __future__ import annotations

import asyncio

import pytest

from gateway.endpoints.websocket_output import FLUSHES_PER_TURN_MAX, Flusher, Output


class Transport(asyncio.Transport):
    """Remembers what is written. A double, to have a buffer that fills when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closing = False

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
        self.slow = self.writable = 0
        self.output = Output(
            self.transport,
            flusher,
            bytes_max=bytes_max,
            slow_reader_ms=slow_reader_ms,
            on_slow=self.on_slow,
            on_writable=self.on_writable,
        )

    def on_slow(self) -> None:
        self.slow += 1

    def on_writable(self) -> None:
        self.writable += 1


@pytest.fixture
async def flusher() -> Flusher:
    return Flusher(asyncio.get_running_loop())


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
    assert made.transport.limits == (25, 100)
    made.output.pause()
    waiting = asyncio.create_task(made.output.drained())
    made.output.write(b"a reply")
    await asyncio.sleep(0.01)
    assert made.transport.writes == [b"a reply"]
    assert not made.output.writable
    assert not waiting.done()
    made.output.resume()
    await waiting
    assert made.output.writable


async def test_who_does_not_drain_in_time_is_slow(flusher):
    made, quick = Made(flusher, slow_reader_ms=10), Made(flusher, slow_reader_ms=10)
    made.output.pause()
    quick.output.pause()
    quick.output.resume()
    await asyncio.sleep(0.05)
    assert (made.slow, quick.slow) == (1, 0)


async def test_pausing_again_does_not_put_the_deadline_off(flusher):
    made = Made(flusher, slow_reader_ms=20)
    for _ in range(10):
        made.output.pause()
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
