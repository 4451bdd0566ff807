"""Alive and ready: what `/livez` and `/readyz` say.

Alive is that the event loop answers at all; a node that is not should be restarted. Ready is that it does its work now; one that
is not should get no traffic, and may recover by itself. So a full disk or a drain makes a node unready, never dead: restarting
would not help either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

Check = Callable[[], str | None]


class Health:
    """Checks by name; each says what is wrong in words that anybody may read, or None. They must not block."""

    def __init__(self, checks: Mapping[str, Check] | None = None) -> None:
        self._checks: dict[str, Check] = dict(checks or {})
        self._stages: dict[str, str] = {"start": "the node is starting"}

    def add(self, name: str, check: Check) -> None:
        self._checks[name] = check

    def started(self) -> None:
        self._stages.clear()

    def draining(self) -> None:
        """From now on never ready again."""
        self._stages["drain"] = "the node is stopping"

    def problems(self) -> dict[str, str]:
        """What keeps the node from being ready, by check; empty when it is. A check that fails is a problem of its own."""
        found = dict(self._stages)
        for name, check in self._checks.items():
            try:
                problem = check()
            except Exception as error:
                problem = f"the check failed ({type(error).__name__})"
            if problem is not None:
                found[name] = problem
        return found

    @property
    def ready(self) -> bool:
        return not self.problems()
