import asyncio
import random

import pytest

from tests.simulation.executor import SimulatedExecutor
from tests.simulation.faults import Faults, Plan, PowerCut
from tests.simulation.loop import SimulatedLoop, VirtualTime
from tests.simulation.trace import Trace


def run(seed, main):
    loop = SimulatedLoop(VirtualTime())
    trace = Trace()
    executor = SimulatedExecutor(loop, random.Random(seed), trace)
    try:
        return loop.run(main(executor)), trace
    finally:
        loop.bury()


@pytest.mark.parametrize("lane", ["commit", "background"])
def test_a_lane_works_in_order_and_answers_in_order(lane):
    worked, answered = [], []

    async def main(executor):
        async def ask(number):
            answered.append(await executor.run(lane, lambda: worked.append(number) or number))

        await asyncio.gather(*(ask(number) for number in range(20)))

    run(1, main)
    assert worked == answered == list(range(20))


def test_readers_overtake_each_other():
    answered = []

    async def main(executor):
        async def ask(number):
            answered.append(await executor.run("read", lambda: number))

        await asyncio.gather(*(ask(number) for number in range(20)))

    run(1, main)
    assert sorted(answered) == list(range(20)) != answered


def test_lanes_interleave_differently_by_seed():
    orders = set()

    async def main(executor):
        order = []
        await asyncio.gather(
            *(executor.run(lane, lambda lane=lane: order.append(lane)) for lane in ("commit", "read", "background") * 3)
        )
        return tuple(order)

    for seed in range(10):
        orders.add(run(seed, main)[0])
    assert len(orders) > 5


def test_the_owner_goes_on_between_the_work_and_its_answer():
    async def main(executor):
        loop = asyncio.get_running_loop()
        worked = asyncio.Event()
        work = executor.run("commit", lambda: loop.call_soon(worked.set))
        await worked.wait()
        assert not work.done()
        await work

    run(3, main)


def test_errors_arrive_where_the_result_would():
    async def main(executor):
        with pytest.raises(OSError, match="disk"):
            await executor.run("commit", raise_os_error)
        return await executor.run("commit", lambda: "next")

    def raise_os_error():
        raise OSError("disk")

    assert run(1, main)[0] == "next"


def test_a_power_cut_inside_the_work_stops_everything():
    loop = SimulatedLoop(VirtualTime())
    faults = Faults(Plan(), random.Random(1), Trace(), loop.halt)
    executor = SimulatedExecutor(loop, random.Random(1), Trace())
    steps = []

    async def main():
        try:
            await executor.run("commit", faults.cut)
        except BaseException:
            steps.append("told")
        steps.append("went on")

    assert loop.run(main()) is None
    assert steps == []
    loop.bury()
    with pytest.raises(PowerCut):
        faults.alive()


def test_a_slow_spell_takes_longer():
    async def main(executor):
        loop = asyncio.get_running_loop()
        for _ in range(20):
            await executor.run("commit", lambda: None)
        usual = loop.time()
        executor.slow_down(40)
        for _ in range(20):
            await executor.run("commit", lambda: None)
        return usual, loop.time() - usual

    (usual, slow), trace = run(1, main)
    assert slow > 10 * usual
    assert trace.counts["slow disk"] == 1


def test_work_given_up_by_its_caller_is_still_done():
    worked = []

    async def main(executor):
        future = executor.run("commit", lambda: worked.append(1))
        future.cancel()
        await executor.run("commit", lambda: None)

    run(1, main)
    assert worked == [1]
