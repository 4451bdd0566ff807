"""Ready or not, and why not."""

from __future__ import annotations

from gateway.observe.health import Health


def fails() -> str | None:
    raise ZeroDivisionError


def test_a_node_is_ready_between_start_and_drain() -> None:
    health = Health()
    assert health.problems() == {"start": "the node is starting"}
    health.started()
    assert health.ready
    health.draining()
    assert health.problems() == {"drain": "the node is stopping"}


def test_each_check_tells_its_own_problem_and_may_recover() -> None:
    problems: dict[str, str | None] = {"disk": None, "audit": "full"}
    health = Health({"disk": lambda: problems["disk"]})
    health.add("audit", lambda: problems["audit"])
    health.started()
    assert health.problems() == {"audit": "full"}
    problems |= {"disk": "away", "audit": None}
    assert health.problems() == {"disk": "away"}
    problems["disk"] = None
    assert health.ready


def test_a_check_that_fails_is_no_sign_of_health() -> None:
    health = Health({"disk": fails})
    health.started()
    assert health.problems() == {"disk": "the check failed (ZeroDivisionError)"}
