"""Latencies as counts in buckets that grow by one per cent: any number of them in bounded memory, percentiles good to 1 %.

After HdrHistogram: the shape of the tail is kept, and two histograms can be added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

GROWTH = 1.01
# 1 us to 10 minutes: 2,032 buckets at most.
LEAST_S, MOST_S = 1e-6, 600.0
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)

_LOG_GROWTH = math.log(GROWTH)


class Latencies:
    """Seconds in, seconds out. What is longer than MOST_S counts as that long; `longest_s` is exact."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.sum_s = 0.0
        self.longest_s = 0.0

    def add(self, latency_s: float) -> None:
        bounded = min(max(latency_s, LEAST_S), MOST_S)
        bucket = math.ceil(math.log(bounded / LEAST_S) / _LOG_GROWTH)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1
        self.sum_s += latency_s
        self.longest_s = max(self.longest_s, latency_s)

    def percentile(self, percent: float) -> float:
        """The upper edge of the bucket that holds it, so never less than what was measured; 0.0 where nothing was."""
        rank = math.ceil(self.count * percent / 100)
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return min(LEAST_S * GROWTH**bucket, self.longest_s)
        return self.longest_s

    def facts(self, percentiles: Sequence[float] = PERCENTILES) -> dict[str, float | int]:
        """Milliseconds."""
        facts: dict[str, float | int] = {"count": self.count}
        for percent in percentiles:
            facts[f"p{percent:g}_ms"] = round(self.percentile(percent) * 1_000, 3)
        facts["max_ms"] = round(self.longest_s * 1_000, 3)
        facts["mean_ms"] = round(self.sum_s / self.count * 1_000, 3) if self.count else 0.0
        return facts

    def columns(self, edges_s: Sequence[float]) -> list[tuple[float, int]]:
        """How many were at most as long as each edge, for a picture of the distribution."""
        found = []
        for edge in edges_s:
            limit = math.floor(math.log(edge / LEAST_S) / _LOG_GROWTH + 1e-9)
            found.append((edge, sum(count for bucket, count in self._counts.items() if bucket <= limit)))
        return found
