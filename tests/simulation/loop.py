"""An asyncio event loop whose time is a number: it never sleeps, never polls, and runs on one thread.

Order is what asyncio promises (first in, first out; timers by time), so everything that differs between two runs comes from
the seed. The loop itself ends a run that can never end: nothing left to run while somebody waits (`Stalled`), or a million
turns (`Runaway`).
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class Stalled(AssertionError):
    """Everybody waits and no timer is set: a wake-up was lost."""


class Runaway(AssertionError):
    """The loop turned `turns_max` times: somebody spins."""


class VirtualTime:
    """Microseconds since the world began; lives longer than any one process of it."""

    def __init__(self) -> None:
        self.now_us = 0

    def seconds(self) -> float:
        return self.now_us / 1_000_000

    def advance_to(self, seconds: float) -> None:
        self.now_us = max(self.now_us, round(seconds * 1_000_000))


class SimulatedLoop(asyncio.BaseEventLoop):
    # BaseEventLoop's own, which its stubs leave out.
    _ready: deque[Any]
    _scheduled: list[Any]
    _timer_cancelled_count: int

    def __init__(self, time: VirtualTime, *, turns_max: int = 1_000_000) -> None:
        super().__init__()
        self._virtual_time = time
        self._clock_resolution = 1e-6
        self._turns_left = turns_max
        self._halted = False
        self.complaints: list[str] = []
        self.set_exception_handler(self._complain)

    def time(self) -> float:
        return self._virtual_time.seconds()

    def halt(self) -> None:
        """The machine is off: the step under way is the last one."""
        self._halted = True

    def run(self, main: Coroutine[Any, Any, Result]) -> Result | None:
        """The result of `main`, or None if the loop was halted; then not one more step of any task has run."""
        task = self.create_task(main)
        task.add_done_callback(lambda _: self.stop())
        self.run_forever()
        if self._halted:
            return None
        return task.result()

    def bury(self) -> None:
        """Drop what is left of a halted process without running it and without asyncio's complaints about it."""
        self._halted = True
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            try:
                task.get_coro().close()
            except BaseException:
                # A `finally` of the dead process met the dead disk, or awaited: a real one would not have run at all.
                continue
        self._ready.clear()
        self._scheduled.clear()
        self.close()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} goes around the Executor seam")

    def _run_once(self) -> None:
        self._wait()
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle._cancelled:
                handle._run()
            if self._halted:
                self._stopping = True
                return

    def _wait(self) -> None:
        """Instead of select(): let time pass until the next timer when nothing is ready."""
        self._turns_left -= 1
        if self._turns_left < 0:
            raise Runaway(f"still running at {self._virtual_time.now_us} us of virtual time")
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        if not self._ready and not self._stopping:
            if not self._scheduled:
                raise Stalled(f"nothing to run at {self._virtual_time.now_us} us: {sorted(map(_place, asyncio.all_tasks(self)))}")
            self._virtual_time.advance_to(self._scheduled[0]._when)
        due = self.time() + self._clock_resolution
        while self._scheduled and self._scheduled[0]._when < due:
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False
            self._ready.append(timer)

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._halted:
            task, exception = context.get("future"), context.get("exception")
            whose = getattr(task.get_coro(), "__qualname__", "") if isinstance(task, asyncio.Task) else ""
            self.complaints.append(f"{context.get('message')}: {whose} {exception!r}")

    # The three that BaseEventLoop leaves to whoever owns a selector.
    def _process_events(self, event_list: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...


def _place(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=8)
    return f"{task.get_coro()!r:.60}" if not frames else f"{frames[-1].f_code.co_qualname}:{frames[-1].f_lineno}"
