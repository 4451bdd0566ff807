"""Until when a rebalance waits."""

from __future__ import annotations

from broker.groups.join_deadline import JoinDeadline

DELAY_MS, TIMEOUT_MS = 3_000, 10_000


def test_the_first_is_put_off_while_members_come_up_to_the_timeout() -> None:
    deadline = JoinDeadline(DELAY_MS)
    deadline.begin_first(0, TIMEOUT_MS)
    ends = [deadline.at_ms]
    while True:
        assert deadline.is_first
        deadline.came()
        if not deadline.put_off(ends[-1]):
            break
        ends.append(deadline.at_ms)
    assert ends == [3_000, 6_000, 9_000, TIMEOUT_MS]
    assert not deadline.is_first


def test_nobody_more_is_the_end() -> None:
    deadline = JoinDeadline(DELAY_MS)
    deadline.came()  # before it began
    deadline.begin_first(0, TIMEOUT_MS)
    assert not deadline.put_off(DELAY_MS)


def test_any_other_has_the_timeout_alone() -> None:
    deadline = JoinDeadline(DELAY_MS)
    deadline.begin_first(0, TIMEOUT_MS)
    deadline.begin(5, TIMEOUT_MS)
    deadline.came()
    assert (deadline.at_ms, deadline.is_first, deadline.put_off(deadline.at_ms)) == (TIMEOUT_MS + 5, False, False)
