"""What ends a wait, and that the work inside stays in its own task."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.endpoints.exchange import Bodies, Exchange
from gateway.endpoints.watch import Watches
from gateway.errors import Busy, ClientGone, Draining


class Peer:
    """An exchange whose client can leave."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {"type": "http", "method": "GET", "raw_path": b"/", "headers": []}
        self.exchange = Exchange(scope, self.inbox.get, self.send, Bodies(1))

    async def send(self, message: Any) -> None:
        raise AssertionError("nothing is sent here")

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})


async def wait_under(watches: Watches, peer: Peer, work: Any) -> Any:
    async with watches.watch(peer.exchange):
        return await work


@pytest.fixture
def watches() -> Watches:
    return Watches("rest.waits_max", 10)


async def test_work_that_ends_by_itself(watches: Watches) -> None:
    assert await wait_under(watches, Peer(), asyncio.sleep(0, "done")) == "done"
    assert len(watches) == 0


async def test_its_errors_come_through(watches: Watches) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await wait_under(watches, Peer(), fail())


async def test_a_client_that_leaves(watches: Watches) -> None:
    peer = Peer()
    peer.inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    peer.leave()
    with pytest.raises(ClientGone):
        await wait_under(watches, peer, asyncio.Event().wait())
    assert len(watches) == 0


async def test_the_drain_ends_all_and_what_comes_later(watches: Watches) -> None:
    tasks = [asyncio.create_task(wait_under(watches, Peer(), asyncio.Event().wait())) for _ in range(3)]
    await asyncio.sleep(0)
    watches.drain()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [Draining] * 3
    with pytest.raises(Draining):
        await watches.watch(Peer().exchange).__aenter__()


async def test_the_bound() -> None:
    narrow = Watches("rest.waits_max", 1)
    async with narrow.watch(Peer().exchange):
        with pytest.raises(Busy, match=r"rest\.waits_max \(1\)"):
            await narrow.watch(Peer().exchange).__aenter__()
    await wait_under(narrow, Peer(), asyncio.sleep(0))


async def test_a_cancellation_from_outside_stays_one(watches: Watches) -> None:
    task = asyncio.create_task(wait_under(watches, Peer(), asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(watches) == 0


async def test_it_nests_with_timeouts(watches: Watches) -> None:
    peer = Peer()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await wait_under(watches, peer, asyncio.Event().wait())
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_the_work_runs_in_the_task_that_will_write(watches: Watches) -> None:
    """No turn of the loop lies between its end and what follows."""
    async with watches.watch(Peer().exchange):
        inside = asyncio.current_task()
    assert inside is asyncio.current_task()
