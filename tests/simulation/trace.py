"""What happened, in order, as one hash: two runs of one seed must agree on every event, or replay means nothing."""

from __future__ import annotations

import hashlib
from collections import Counter, deque


class Trace:
    """`note` takes facts whose `repr` is the same in every process (no objects with addresses, no sets of strings)."""

    def __init__(self, *, lines_max: int = 400, echo: bool = False) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._echo = echo
        self.events = 0
        self.counts: Counter[str] = Counter()
        self.last: deque[str] = deque(maxlen=lines_max)

    def note(self, *facts: object) -> None:
        line = repr(facts)
        self._hash.update(line.encode())
        self.events += 1
        self.last.append(line)
        if self._echo:
            print(f"{self.events:>7} {line:.200}", flush=True)

    def count(self, kind: str, amount: int = 1) -> None:
        """Something of a kind occurred that the set of seeds has to show at least once."""
        self.counts[kind] += amount
        self.note("count", kind, amount)

    def digest(self) -> str:
        return self._hash.hexdigest()
