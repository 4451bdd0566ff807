"""Exact, prefix and `*`: the index agrees with one pattern at a time, and what could never match is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.policy.patterns import (
    KEY_PATTERN_CHARS_MAX,
    NAME_PATTERN_CHARS_MAX,
    TOPIC_CHARS_MAX,
    KeySet,
    PatternIndex,
    check_key_pattern,
    check_name_pattern,
    check_topic_pattern,
    matches,
)

texts = st.text("ab.", max_size=5)
patterns = st.builds(str.__add__, texts, st.sampled_from(["", "*"]))


@given(st.lists(st.tuples(patterns, st.integers(0, 9))), texts)
def test_the_index_finds_what_each_pattern_alone_would(entries, text):
    index = PatternIndex(entries)
    assert sorted(index.matching(text)) == sorted(value for pattern, value in entries if matches(pattern, text))
    assert index.exactly(text) == [value for pattern, value in entries if pattern == text]


def test_the_nearest_pattern_comes_first():
    index = PatternIndex([("*", "any"), ("or*", "short"), ("orders*", "long"), ("orders", "exact")])
    assert index.matching("orders") == ["exact", "long", "short", "any"]


@given(st.lists(st.none() | patterns), st.text("ab.", max_size=6).map(str.encode))
def test_a_key_set_holds_what_each_key_pattern_alone_would(key_patterns, key):
    expected = any(pattern is None or matches(pattern, key.decode()) for pattern in key_patterns)
    assert KeySet(key_patterns).holds(key) == expected


@pytest.mark.parametrize("pattern", ["orders", "orders*", "*", "a.b-c_D9", "x" * TOPIC_CHARS_MAX, "x" * TOPIC_CHARS_MAX + "*"])
def test_topic_patterns_that_can_match(pattern):
    check_topic_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("", "empty"),
        ("orders/eu", "after the first '/' is the key"),
        ("or*ders", "before its end"),
        ("**", "before its end"),
        ("or ders", "no topic name does"),
        ("ordérs", "no topic name does"),
        ("orders\n", "unprintable"),
        ("x" * (TOPIC_CHARS_MAX + 2), "at most"),
    ],
)
def test_topic_patterns_that_never_could(pattern, said):
    with pytest.raises(ValueError, match=said):
        check_topic_pattern(pattern)


def test_key_patterns_may_be_empty_and_have_slashes_and_a_bound():
    for pattern in ("", "eu/*", "*", "größe/1", "k" * KEY_PATTERN_CHARS_MAX):
        check_key_pattern(pattern)
    for pattern in ("a*b", "k" * (KEY_PATTERN_CHARS_MAX + 1), "a\x00"):
        with pytest.raises(ValueError, match="key pattern"):
            check_key_pattern(pattern)


def test_name_patterns_have_a_bound_and_are_named_in_the_message():
    check_name_pattern("user:a*", "principal pattern")
    for pattern in ("", "a*b", "u" * (NAME_PATTERN_CHARS_MAX + 1)):
        with pytest.raises(ValueError, match="group pattern"):
            check_name_pattern(pattern, "group pattern")
