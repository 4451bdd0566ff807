"""Fuzz target: patterns of topic names (KIP-848): refused by name or matched, in time that is linear in the names."""

from __future__ import annotations

import time

from broker.groups.group_errors import SubscriptionInvalid
from broker.groups.patterns import PATTERN_CHARS_MAX, matching
from tests.fuzz.refusals import check_refusal

NAMES = ["orders", "a" * 249, "readings.eu-1", "x_y"]
SECONDS_MAX = 2.0  # RE2 takes microseconds; a backtracking engine would take years

CORPUS = [
    b"orders",
    b".*",
    b"(a+)+b",
    b"(a|aa)*$",
    b"((a{0,30}){0,30}){0,30}",
    b"[[:alpha:]]+\\d?",
    b"(?i)ORDERS",
    b"(",
    b"\\",
    b"x" * 1_025,
]


def one_input(data: bytes) -> None:
    pattern = data.decode("utf-8", "ignore")
    began = time.perf_counter()
    try:
        found = matching(pattern, NAMES)
    except SubscriptionInvalid as error:
        check_refusal(error)
    else:
        assert found <= set(NAMES)
        assert len(pattern) <= PATTERN_CHARS_MAX
    assert time.perf_counter() - began < SECONDS_MAX
