"""Patterns of names that clients give, of topics to subscribe to (KIP-848) or of transactional ids, matched by RE2 as in Kafka:
linear in the length of the name, whatever the pattern."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import re2

from broker.groups.group_errors import SubscriptionInvalid

PATTERN_CHARS_MAX = 1_024
PROGRAM_BYTES_MAX = 1024 * 1024  # RE2's own bound is 8 MiB for each pattern
PATTERNS_KEPT_MAX = 256
REASON_CHARS_MAX = 200


def matching(pattern: str, topics: Iterable[str]) -> frozenset[str]:
    """The names that the pattern matches from end to end. SubscriptionInvalid."""
    match = compiled(pattern).fullmatch
    return frozenset([topic for topic in topics if match(topic)])


@lru_cache(PATTERNS_KEPT_MAX)
def compiled(pattern: str) -> re2._Regexp:
    """SubscriptionInvalid."""
    if len(pattern) > PATTERN_CHARS_MAX:
        raise SubscriptionInvalid(f"it has more than {PATTERN_CHARS_MAX} characters")
    options = re2.Options()
    options.max_mem = PROGRAM_BYTES_MAX
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        text = error.args[0] if error.args else b""
        reason = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        raise SubscriptionInvalid(reason[:REASON_CHARS_MAX]) from None  # it quotes the pattern
