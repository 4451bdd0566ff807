"""Filters: MQTT's matching over topic and key, bounds, and no text that costs more than its length."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.delivery import filter as module
from broker.delivery.filter import Filter, FilterInvalid
from broker.record import Record
from broker.topics.addresses import Address, parse_address


def record(key: bytes | None, *headers: tuple[str, bytes | None]) -> Record:
    return Record(0, 0, key, b"v", headers)


def mqtt_matches(pattern: list[str], path: list[str]) -> bool:
    """MQTT 5.0, 4.7.1, written as it reads."""
    if not pattern:
        return not path
    if pattern[0] == "#":
        return True
    if not path:
        return False
    return pattern[0] in ("+", path[0]) and (mqtt_matches(pattern[1:], path[1:]) or (pattern[1:] == ["#"] and not path[1:]))


levels = st.sampled_from(["", "a", "b", "eu", "$key", "ü", "7"])
topic_names = st.sampled_from(["a", "orders"])
keys = st.none() | st.binary(max_size=4) | st.lists(levels, min_size=1, max_size=4).map(lambda parts: "/".join(parts).encode())
patterns = st.tuples(topic_names | st.just("+"), st.lists(levels | st.just("+"), max_size=4), st.sampled_from([[], ["#"]])).map(
    lambda parts: "/".join([parts[0], *parts[1], *parts[2]])
)


@given(patterns | st.just("#"), topic_names, keys)
@example("orders/$key/#", "orders", b"\x00\xff")
@example("orders/+/+", "orders", b"$key/")
@example("orders/$key/JGtleS8", "orders", b"$key/")
def test_it_is_mqtts_matching_over_the_text_of_the_address(pattern: str, topic: str, key: bytes | None) -> None:
    found = Filter.parse(pattern, bare_topic="null-key").matches(topic, record(key))
    wanted = pattern if "+" in pattern or "#" in pattern else parse_address(pattern).text()
    assert found == mqtt_matches(wanted.split("/"), Address(topic, key).text().split("/"))


@pytest.mark.parametrize(
    ("address", "matched", "unmatched"),
    [
        ("orders/eu/+", ["orders/eu/7", "orders/eu/"], ["orders/eu", "orders/eu/7/8", "orders/us/7", "orderz/eu/7"]),
        ("orders/eu/#", ["orders/eu", "orders/eu/", "orders/eu/7/8"], ["orders/eur", "orders/us", "orders"]),
        ("orders/#", ["orders", "orders/", "orders/eu/7"], ["payments", "payments/7"]),
        ("orders", ["orders", "orders/", "orders/eu/7"], ["payments"]),
        ("+", ["orders", "orders/", "payments/eu/7"], []),
        ("+/status", ["a/status", "b/status"], ["a", "a/status/x", "a/statu"]),
        ("#", ["orders", "orders/eu/7"], []),
        ("orders/+/#", ["orders/", "orders/eu/7"], ["orders"]),
        ("orders/eu\n/+", ["orders/eu\n/x\ny"], ["orders/eu/x"]),
        ("orders/eu/7", ["orders/eu/7"], ["orders/eu/70", "orders/eu", "orders"]),
    ],
)
def test_addresses(address: str, matched: list[str], unmatched: list[str]) -> None:
    filter = Filter.parse(address)
    for path in matched + unmatched:
        topic, key = (found := parse_address(path)).topic, found.key
        assert filter.matches(topic, record(key)) is (path in matched), path


def test_what_is_left_out_says_everything() -> None:
    for everything in (Filter.parse(), Filter.parse("#"), Filter.parse("+"), Filter.parse(key_prefix=b"", headers={})):
        assert everything.open
        assert everything.topic is None
        assert everything.exact is None
        assert everything.topics("anything")
    assert Filter.parse("orders").open
    assert Filter.parse("orders").topic == "orders"
    assert not Filter.parse("orders/+/#").open


def test_exact_addresses_are_told() -> None:
    assert Filter.parse("orders/eu/7").exact == ("orders", b"eu/7")
    assert Filter.parse("orders/").exact == ("orders", b"")
    assert Filter.parse("orders/$key/AP8").exact == ("orders", b"\x00\xff")
    assert Filter.parse("orders/$key/AP8=") == Filter.parse("orders/$key/AP8")
    assert Filter.parse("orders", bare_topic="null-key").exact == ("orders", None)
    for wide in ("orders", "orders/+", "+/7", "#"):
        assert Filter.parse(wide).exact is None
    assert Filter.parse("orders/eu/7", headers={"a": "b"}).exact == ("orders", b"eu/7")


def test_key_prefix_and_headers_must_hold_too() -> None:
    filter = Filter.parse("orders", key_prefix=b"eu/", headers={"type": "paid", "v": ""})
    paid, version = ("type", b"paid"), ("v", b"")
    assert filter.matches("orders", record(b"eu/7", ("type", b"open"), paid, version))  # one of two of a name
    assert not filter.matches("orders", record(b"us/7", paid, version))
    assert not filter.matches("orders", record(None, paid, version))
    assert not filter.matches("orders", record(b"eu/7", paid))
    assert not filter.matches("orders", record(b"eu/7", paid, ("v", None)))
    assert not filter.matches("orders", record(b"eu/7", ("Type", b"paid"), version))
    assert not filter.matches("payments", record(b"eu/7", paid, version))
    assert not filter.open


def test_equal_filters_are_one_key() -> None:
    first = Filter.parse("orders", headers={"a": "1", "b": "2"})
    assert {first: 1}[Filter.parse("orders/#", headers={"b": "2", "a": "1"})] == 1
    assert first != Filter.parse("orders", headers={"a": "1"})
    assert "regex" not in repr(first)


HOSTILE: list[tuple[dict[str, Any], str, str]] = [
    ({"address": ""}, "address", "no topic's name"),
    ({"address": "/orders"}, "address", "no topic's name"),
    ({"address": "or ders/#"}, "address", "no topic's name"),
    ({"address": "$share/group/orders"}, "address", "no topic's name"),
    ({"address": "x" * 250}, "address", "no topic's name"),
    ({"address": "orders/#/x"}, "address", "not the last"),
    ({"address": "#/orders"}, "address", "not the last"),
    ({"address": "##"}, "address", "stand alone"),
    ({"address": "orders/eu+"}, "address", "stand alone"),
    ({"address": "orders/+eu/7"}, "address", "level 2"),
    ({"address": "orders/eu#"}, "address", "stand alone"),
    ({"address": "or+ders"}, "address", "stand alone"),
    ({"address": "orders/\x00"}, "address", "null character"),
    ({"address": "orders/\udc80"}, "address", "no UTF-8"),
    ({"address": "orders/" + "x" * module.ADDRESS_BYTES_MAX}, "address", "at most 2048"),
    ({"address": "orders" + "/+" * module.LEVELS_MAX}, "address", "65 levels, at most 64"),
    ({"address": "orders" + "/a/+" * 40}, "address", "81 levels"),
    ({"key_prefix": b"x" * 1025}, "key_prefix", "1025 bytes, at most 1024"),
    ({"headers": {str(n): "" for n in range(17)}}, "headers", "there are 17, at most 16"),
    ({"headers": {"": "x"}}, "headers", "no name"),
    ({"headers": {"a" * 500: "b" * 525}}, "headers", "1025 bytes"),
    ({"headers": {"a": "\udc80"}}, "headers", "no UTF-8"),
    ({"headers": {"\udc80": "a"}}, "headers", "no UTF-8"),
]


@pytest.mark.parametrize(("members", "member", "reason"), HOSTILE)
def test_hostile_filters_are_refused_by_name(members: dict[str, Any], member: str, reason: str) -> None:
    with pytest.raises(FilterInvalid, match=re.escape(reason)) as refused:
        Filter.parse(**members)
    assert refused.value.member == member
    assert len(str(refused.value)) < 300


@given(st.text(max_size=20) | st.text(alphabet="+#/$ke\x00a", max_size=12))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    with suppress(FilterInvalid):
        filter = Filter.parse(text)
        assert filter.matches("orders", record(b"eu/7")) in (True, False)
        assert Filter.parse(filter.address, bare_topic="null-key") == filter


def test_the_bounds_themselves_are_allowed() -> None:
    Filter.parse("orders" + "/+" * (module.LEVELS_MAX - 1))
    Filter.parse("o/" + "x" * (module.ADDRESS_BYTES_MAX - 2))
    Filter.parse(key_prefix=b"x" * 1024, headers={str(n): "x" * 1000 for n in range(16)})


def test_as_many_wildcards_as_allowed_against_a_key_made_for_them() -> None:
    """A pattern that went back would need 2^60 steps here, and this test would never end."""
    filter = Filter.parse("orders" + "/+" * 62 + "/end")
    for key in (b"a/" * 1000 + b"a", b"/" * 100_000, b"a" * 1_000_000, b"a/" * 62 + b"en", b"\xff" * 1_000_000):
        assert not filter.matches("orders", record(key))
    assert filter.matches("orders", record(b"a/" * 62 + b"end"))
