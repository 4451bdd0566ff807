"""The three patterns of the policy: exact, `prefix*` and `*`, checked where they are born and looked up by dictionary.

There is no escape for a literal `*`: topic names cannot hold one, and a key that ends in one is reached by a prefix.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

# Kafka's own bound for topic names (Topic.validate), so that a pattern that could never match is found when it is written.
TOPIC_CHARS_MAX = 249
KEY_PATTERN_CHARS_MAX = 1024
NAME_PATTERN_CHARS_MAX = 256

_NOT_IN_TOPIC_NAMES = re.compile(r"[^a-zA-Z0-9._-]")

T = TypeVar("T")


def check_topic_pattern(pattern: str) -> None:
    """Raise `ValueError` unless some Kafka-legal topic name could match `pattern`."""
    _check_shape(pattern, "topic pattern", TOPIC_CHARS_MAX + 1)
    if not pattern:
        raise ValueError("the topic pattern is empty: write '*' for every topic")
    if found := _NOT_IN_TOPIC_NAMES.search(pattern.removesuffix("*")):
        advice = "the part after the first '/' is the key" if found[0] == "/" else "use a-z A-Z 0-9 . _ - and a last '*'"
        raise ValueError(f"the topic pattern {pattern!r} holds {found[0]!r}, which no topic name does: {advice}")


def check_key_pattern(pattern: str) -> None:
    """Raise `ValueError` unless `pattern` is exact (the empty key included), `prefix*` or `*`."""
    _check_shape(pattern, "key pattern", KEY_PATTERN_CHARS_MAX)


def check_name_pattern(pattern: str, what: str) -> None:
    """Raise `ValueError` unless `pattern` could match a principal's or a group's name; `what` names it in the message."""
    _check_shape(pattern, what, NAME_PATTERN_CHARS_MAX)
    if not pattern:
        raise ValueError(f"the {what} is empty")


def _check_shape(pattern: str, what: str, chars_max: int) -> None:
    if len(pattern) > chars_max:
        raise ValueError(f"the {what} {pattern[:40]!r}... has {len(pattern)} characters, at most {chars_max} are allowed")
    if "*" in pattern[:-1]:
        raise ValueError(f"the {what} {pattern!r} has a '*' before its end: write exact text, 'prefix*' or '*'")
    if not pattern.isprintable():
        raise ValueError(f"the {what} {pattern!r} holds unprintable characters")


def matches(pattern: str, text: str) -> bool:
    """One pattern against one text; for many patterns build a `PatternIndex`."""
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def packed(values: Mapping[str, list[T]]) -> dict[str, tuple[T, ...]]:
    """Tuples hold their items in place: a look-up in a large policy costs its cache misses."""
    return {text: tuple(found) for text, found in values.items()}


class PatternIndex(Generic[T]):
    """Values filed under patterns. A look-up costs one dictionary probe per distinct prefix length, not per pattern."""

    __slots__ = ("_exact", "_prefixes")

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        exact: dict[str, list[T]] = {}
        by_length: dict[int, dict[str, list[T]]] = {}  # `*` is the prefix of length 0
        for pattern, value in entries:
            if pattern.endswith("*"):
                by_length.setdefault(len(pattern) - 1, {}).setdefault(pattern[:-1], []).append(value)
            else:
                exact.setdefault(pattern, []).append(value)
        self._exact = packed(exact)
        self._prefixes = [(length, packed(by_length[length])) for length in sorted(by_length, reverse=True)]

    def exactly(self, text: str) -> list[T]:
        """The values filed under `text` itself, no wildcard counted."""
        return [*self._exact.get(text, ())]

    def matching(self, text: str) -> list[T]:
        """The values of every pattern that matches: exact first, then from the longest prefix to `*`."""
        found = [*self._exact.get(text, ())]
        for length, prefixes in self._prefixes:
            values = prefixes.get(text[:length])  # a shorter text is no key of this length
            if values is not None:
                found += values
        return found


class KeySet:
    """The record keys that some key patterns (None or `*`: every key, the null key too) reach, as bytes."""

    __slots__ = ("exact", "prefixes", "whole")

    def __init__(self, patterns: Iterable[str | None]) -> None:
        exact: set[bytes] = set()
        prefixes: set[bytes] = set()
        self.whole = False
        for pattern in patterns:
            if pattern is None or pattern == "*":
                self.whole = True
            elif pattern.endswith("*"):
                prefixes.add(pattern[:-1].encode())
            else:
                exact.add(pattern.encode())
        self.exact = frozenset(exact)
        self.prefixes = tuple(sorted(prefixes))

    def holds(self, key: bytes) -> bool:
        return self.whole or key in self.exact or key.startswith(self.prefixes)
