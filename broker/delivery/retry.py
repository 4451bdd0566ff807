"""How long to wait before a record is delivered once more."""

from __future__ import annotations

from broker.seams import Random

_DOUBLINGS_MAX = 32  # 2 ** 32 ms are fifty days: whatever the first pause, its bound was reached long before
_DRAW_BYTES = 8


def backoff_ms(attempts: int, first_ms: int, longest_ms: int, random: Random) -> int:
    """Exponential with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"): records that failed together, as
    when a database behind the consumer was away, do not come back together.

    `attempts` counts the deliveries so far, from 1. The pause is drawn evenly from 0 to min(longest, first * 2^(attempts - 1)).
    """
    ceiling = min(longest_ms, first_ms << min(max(attempts, 1) - 1, _DOUBLINGS_MAX))
    if ceiling <= 0:
        return 0
    draw = int.from_bytes(random.bytes(_DRAW_BYTES), "little")
    return draw * (ceiling + 1) >> (8 * _DRAW_BYTES)
