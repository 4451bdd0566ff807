"""What goes wrong and when: one plan per life of the simulated process, drawn from the seed.

Every operation on disk or keyed store asks `Faults.meet` first. The answer is: nothing, an error, or that the power fails just
before or just after this operation. Which operation is the last one is a plain count, either of all operations or of those of
one kind, so that the rare ones (rename, remove, folder sync) are as likely to be the last as the thousands of writes.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.simulation.trace import Trace

CUT_KINDS = ("write", "sync", "truncate", "create", "rename", "remove", "sync folder", "store write", "store flush")
"""Operations after (or before) which the power may fail; reads change nothing, so a cut there equals one at the next of these."""


FAILING_KINDS = ("write",) * 3 + ("sync",) * 4 + ("create", "rename", "remove", "sync folder")
FAILING_STORE_KINDS = ("store write", "store flush")


class PowerCut(BaseException):
    """The machine is off.

    A `BaseException`, because the engine has every right to `except Exception` around its disk calls and none to survive this.
    Should it catch even this one, nothing is gained: every later call raises it again, and the loop never runs another step.
    """


@dataclass
class Failure:
    """An errno for one operation of a kind: the `after`-th one from the start of this life."""

    kind: str
    after: int
    code: int

    @property
    def name(self) -> str:
        return f"{self.kind} fails with {errno.errorcode[self.code]}"


@dataclass
class Plan:
    """One life of the process. `cut_after` counts operations of `cut_kind` (None: of all kinds); None: no cut."""

    cut_after: int | None = None
    cut_kind: str | None = None
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`landed` is the share of a failing write that reached the page cache."""

    cut_before: bool = False
    cut_after: bool = False
    error: OSError | None = None
    landed: float = 0.0


PASS = Verdict()


class Faults:
    def __init__(self, plan: Plan, random: random.Random, trace: Trace, on_cut: Callable[[], None]) -> None:
        self._plan = plan
        self._random = random
        self._trace = trace
        self._on_cut = on_cut
        self._left = plan.cut_after
        self._done_at_cut = False
        self.off = False
        self.operations = 0
        self.last_operation = ""

    def alive(self) -> None:
        if self.off:
            raise PowerCut

    def meet(self, kind: str, path: str) -> Verdict:
        """Called before an operation; the caller honours the verdict. Raises PowerCut when the machine is off."""
        self.alive()
        self.operations += 1
        self.last_operation = f"{kind} {path}"
        if self._left is not None and self._plan.cut_kind in (None, kind):
            self._left -= 1
            if self._left <= 0:
                self._trace.count(f"power cut at {kind}")
                before = self._random.random() < 0.5 and not self._done_at_cut
                return Verdict(cut_before=before, cut_after=not before)
        return self._failure(kind)

    def cut_after_next(self, kind: str) -> None:
        """The next operation of this kind is done and is the last one."""
        self._plan.cut_kind, self._left, self._done_at_cut = kind, 1, True

    def cut_after_operations(self, count: int) -> None:
        """The power fails at the count-th operation from now on, whatever it is."""
        self._plan.cut_kind, self._left, self._done_at_cut = None, count, False

    def cut(self) -> None:
        """The power fails here."""
        self.kill()
        raise PowerCut

    def kill(self) -> None:
        """The process is gone; whether the page cache goes with it is up to the disk."""
        self.off = True
        self._on_cut()

    def _failure(self, kind: str) -> Verdict:
        for failure in self._plan.failures:
            if failure.kind == kind:
                failure.after -= 1
                if failure.after == 0:
                    self._trace.count(failure.name)
                    return Verdict(error=OSError(failure.code, os.strerror(failure.code)), landed=self._random.random())
        return PASS


def draw_plan(random: random.Random, failing: Sequence[str]) -> Plan:
    """A life's plan. Cuts come early (while the node recovers) as well as late, and at every kind of operation.

    Operations of the kinds in `failing` may fail.
    """
    plan = Plan()
    way = random.choice(("none", "any", "any", "early", "kind", "kind"))
    if way == "none":
        plan.cut_after = None
    elif way == "kind":
        plan.cut_kind = random.choice(CUT_KINDS)
        plan.cut_after = random.randint(1, _OFTEN[plan.cut_kind])
    else:
        plan.cut_after = random.randint(1, 40 if way == "early" else 200)
    if failing:
        for _ in range(random.choice((0, 1, 1, 2))):
            kind = random.choice(failing)
            code = random.choice((errno.EIO, errno.ENOSPC)) if kind in ("write", "create") else errno.EIO
            plan.failures.append(Failure(kind, random.randint(1, _OFTEN[kind]), code))
    return plan


_OFTEN = {
    "write": 50,
    "sync": 25,
    "create": 20,
    "sync folder": 17,
    "rename": 13,
    "store write": 6,
    "remove": 5,
    "store flush": 4,
    "truncate": 1,
}
"""How often an operation occurs in a life, on average (measured); 140 operations together."""
