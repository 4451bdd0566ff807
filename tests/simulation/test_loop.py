import asyncio

import pytest

from tests.simulation.loop import Runaway, SimulatedLoop, Stalled, VirtualTime


def make_loop(**options):
    return SimulatedLoop(VirtualTime(), **options)


def test_an_hour_of_sleep_takes_no_time_and_is_counted():
    time = VirtualTime()
    loop = SimulatedLoop(time)

    async def main():
        await asyncio.sleep(3600)
        return loop.time()

    assert loop.run(main()) == 3600.0
    loop.close()
    assert time.now_us == 3_600_000_000


def test_timers_fire_by_time_and_ties_in_the_order_they_were_set():
    loop = make_loop()
    fired = []

    async def main():
        for delay in (0.003, 0.001, 0.002, 0.001):
            loop.call_later(delay, fired.append, delay)
        await asyncio.sleep(0.01)

    loop.run(main())
    loop.close()
    assert fired == [0.001, 0.001, 0.002, 0.003]


def test_a_cancelled_timer_does_not_move_the_clock():
    loop = make_loop()

    async def main():
        loop.call_later(5, print).cancel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), timeout=1)
        return loop.time()

    assert loop.run(main()) == 1.0
    loop.close()


def test_waiting_for_what_never_comes_is_named():
    loop = make_loop()

    async def wait_for_ever():
        await loop.create_future()

    with pytest.raises(Stalled, match="wait_for_ever"):
        loop.run(wait_for_ever())
    loop.bury()


def test_spinning_is_ended():
    loop = make_loop(turns_max=1000)

    async def spin():
        for _ in range(10**9):
            await asyncio.sleep(0)

    with pytest.raises(Runaway):
        loop.run(spin())
    loop.bury()


def test_after_a_halt_not_one_more_step_runs():
    loop = make_loop()
    steps = []

    async def other():
        try:
            while True:
                steps.append("other")
                await asyncio.sleep(0.001)
        finally:
            steps.append("finally")
            await asyncio.sleep(1)

    async def main():
        task = loop.create_task(other())
        await asyncio.sleep(0.0025)
        loop.create_task(never_started())
        loop.call_soon(steps.append, "soon")
        loop.halt()
        await asyncio.sleep(0)
        steps.append("main")
        return task

    async def never_started():
        steps.append("started")

    assert loop.run(main()) is None
    assert steps == ["other", "other", "other"]
    loop.bury()
    assert steps[3:] == ["finally"]  # its frame is dropped; nothing it awaits happens


def test_threads_are_refused():
    loop = make_loop()

    async def main():
        await asyncio.to_thread(print)

    with pytest.raises(AssertionError, match="Executor seam"):
        loop.run(main())
    loop.close()


def test_an_exception_nobody_fetched_is_kept_as_a_complaint():
    loop = make_loop()

    async def main():
        loop.call_soon(int, "x")
        await asyncio.sleep(0.001)

    loop.run(main())
    loop.close()
    assert len(loop.complaints) == 1
    assert "ValueError" in loop.complaints[0]
