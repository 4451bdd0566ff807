import errno
import random

import pytest

from tests.simulation.faults import (
    CUT_KINDS,
    FAILING_KINDS,
    FAILING_STORE_KINDS,
    PASS,
    Failure,
    Faults,
    Plan,
    PowerCut,
    draw_plan,
)
from tests.simulation.trace import Trace


def faults(plan, seed=1):
    cuts = []
    return Faults(plan, random.Random(seed), Trace(), lambda: cuts.append(1)), cuts


def test_a_power_cut_is_nothing_that_code_handles():
    assert not issubclass(PowerCut, Exception)


def test_the_cut_comes_at_the_counted_operation_before_or_after_it():
    sides = set()
    for seed in range(20):
        met, _ = faults(Plan(cut_after=3), seed)
        assert met.meet("write", "a") == met.meet("sync", "a") == PASS
        verdict = met.meet("rename", "a")
        assert verdict.cut_before != verdict.cut_after
        sides.add(verdict.cut_before)
    assert sides == {False, True}


def test_a_cut_of_one_kind_counts_that_kind_only():
    met, _ = faults(Plan(cut_after=2, cut_kind="rename"))
    verdicts = [met.meet(kind, "a") for kind in ("write", "rename", "sync", "write", "rename")]
    assert [verdict.cut_before or verdict.cut_after for verdict in verdicts] == [False, False, False, False, True]


def test_the_next_operation_can_be_made_the_last_one():
    met, _ = faults(Plan())
    met.cut_after_next("sync")
    assert not met.meet("write", "a").cut_after
    assert met.meet("sync", "a").cut_after


def test_when_the_machine_is_off_nothing_is_met_any_more():
    met, cuts = faults(Plan())
    with pytest.raises(PowerCut):
        met.cut()
    assert cuts == [1]
    for call in (met.alive, lambda: met.meet("write", "a")):
        with pytest.raises(PowerCut):
            call()


def test_a_failure_strikes_once():
    met, _ = faults(Plan(failures=[Failure("sync", 2, errno.EIO)]))
    errors = [met.meet(kind, "a").error for kind in ("sync", "write", "sync", "sync")]
    assert [error is None for error in errors] == [True, True, False, True]
    assert errors[2].errno == errno.EIO


def test_plans_have_cuts_early_late_and_of_every_kind():
    draw = random.Random(1)
    plans = [draw_plan(draw, FAILING_KINDS + FAILING_STORE_KINDS) for _ in range(2000)]
    assert {plan.cut_kind for plan in plans} == {None, *CUT_KINDS}
    cuts = [plan.cut_after for plan in plans if plan.cut_kind is None and plan.cut_after is not None]
    assert min(cuts) == 1
    assert max(cuts) > 150
    assert any(plan.cut_after is None for plan in plans)
    assert {len(plan.failures) for plan in plans} == {0, 1, 2}
    assert {failure.kind for plan in plans for failure in plan.failures} == {*FAILING_KINDS, *FAILING_STORE_KINDS}
    assert not any(draw_plan(draw, ()).failures for _ in range(100))
