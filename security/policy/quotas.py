"""How much a principal may do: one rate limit per quota, kept per principal.

The generic cell rate algorithm (ITU-T I.371): per key one number, the time at which all that was admitted will have been paid
for at the agreed rate. It needs no timer, forgets nothing between requests and gives the exact time to try again.
"""

import heapq
import math
from collections.abc import Mapping
from enum import StrEnum

import msgspec

# 100 bytes each, so 10 MB when full.
KEYS_MAX = 100_000
_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000


class Quota(StrEnum):
    """What is counted, per principal."""

    REQUESTS = "requests"
    BYTES_IN = "bytes_in"
    BYTES_OUT = "bytes_out"


class RateLimit(msgspec.Struct, frozen=True):
    """`rate_per_s` in the long run, and up to `burst` at once after a pause; in requests or bytes."""

    rate_per_s: float
    burst: float

    def __post_init__(self) -> None:
        for name, value in (("rate_per_s", self.rate_per_s), ("burst", self.burst)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} = {value!r}: a number above 0 is needed; leave the quota out for no limit")


class Meter:
    """One rate limit over at most `keys_max` keys."""

    __slots__ = ("_cost_ns", "_keys_max", "_paid_at_ns", "_tolerance_ns", "limit")

    def __init__(self, limit: RateLimit, keys_max: int = KEYS_MAX) -> None:
        if keys_max < 1:
            raise ValueError(f"keys_max = {keys_max}: at least one key has to be kept")
        self.limit = limit
        self._cost_ns = _NS_PER_S / limit.rate_per_s
        self._tolerance_ns = int(limit.burst * self._cost_ns)
        self._keys_max = keys_max
        self._paid_at_ns: dict[str, int] = {}

    def __len__(self) -> int:
        """Keys tracked now."""
        return len(self._paid_at_ns)

    def admit(self, key: str, cost: float, now_ns: int) -> int:
        """0 and the cost is charged, or milliseconds until it would be admitted and nothing is charged.

        `now_ns` is a monotonic clock. A cost above the burst waits for a full recovery and then goes into debt: refusing it
        for ever, with a time to retry at which it is refused again, would be a lie.
        """
        paid_at = self._paid_at_ns.get(key, now_ns)
        if paid_at < now_ns:
            paid_at = now_ns
        cost_ns = int(cost * self._cost_ns)
        wait_ns = paid_at - now_ns + min(cost_ns, self._tolerance_ns) - self._tolerance_ns
        if wait_ns > 0:
            return -(-wait_ns // _NS_PER_MS)
        if key not in self._paid_at_ns and len(self._paid_at_ns) >= self._keys_max:
            self._make_room(now_ns)
        self._paid_at_ns[key] = paid_at + cost_ns
        return 0

    def _make_room(self, now_ns: int) -> None:
        """Drop the fully recovered, who lose nothing by it; if too few are, the eighth that is nearest to it.

        An eighth at a time, so that the scan is shared by many new keys.
        """
        kept = {key: paid_at for key, paid_at in self._paid_at_ns.items() if paid_at > now_ns}
        room_wanted = max(1, self._keys_max // 8)
        surplus = len(kept) - (self._keys_max - room_wanted)
        if surplus > 0:
            for key in heapq.nsmallest(surplus, kept, key=kept.__getitem__):
                del kept[key]
        self._paid_at_ns = kept


class Quotas:
    """The node's quotas. A quota without a limit admits everything; `keys_max` bounds the principals tracked per quota."""

    __slots__ = ("_meters",)

    def __init__(self, limits: Mapping[str, RateLimit], keys_max: int = KEYS_MAX) -> None:
        if unknown := set(limits) - set(Quota):
            raise ValueError(f"there is no quota {min(unknown)!r}: choose from {', '.join(Quota)}")
        self._meters = {Quota(name): Meter(limit, keys_max) for name, limit in limits.items()}

    @property
    def limits(self) -> Mapping[Quota, RateLimit]:
        """What is limited, and how."""
        return {quota: meter.limit for quota, meter in self._meters.items()}

    @property
    def unlimited(self) -> bool:
        """No quota has a limit: nobody needs to ask."""
        return not self._meters

    def admit(self, quota: Quota, principal_name: str, cost: float, now_ns: int) -> int:
        """0 when admitted and charged, else `retry_after_ms`; `now_ns` is a monotonic clock."""
        meter = self._meters.get(quota)
        return 0 if meter is None else meter.admit(principal_name, cost, now_ns)
