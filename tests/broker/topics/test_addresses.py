"""Addresses: total, invertible, and legal MQTT topic names."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.topics.addresses import Address, legal_topic_name, parse_address

TOPICS = st.from_regex(r"[a-zA-Z0-9._-]{1,30}", fullmatch=True)
KEYS = st.none() | st.binary(max_size=60) | st.text(max_size=60).map(str.encode)

NAMED = [
    ("orders/eu/7", "orders", b"eu/7"),
    ("orders", "orders", None),
    ("orders/", "orders", b""),
    ("orders//", "orders", b"/"),
    ("orders/a b/ü", "orders", "a b/ü".encode()),
    ("orders/$key", "orders", b"$key"),
    ("orders/$keys/AP8", "orders", b"$keys/AP8"),
    ("orders/eu/$key/AP8", "orders", b"eu/$key/AP8"),
    ("orders/$key/AP8", "orders", b"\x00\xff"),
    ("orders/$key/YSti", "orders", b"a+b"),
    ("orders/$key/JGtleS9BUDg", "orders", b"$key/AP8"),
    ("", "", None),
    ("/", "", b""),
    ("/TopicA", "", b"TopicA"),
]


class TestBothWays:
    @pytest.mark.parametrize(("text", "topic", "key"), NAMED)
    def test_named_addresses(self, text, topic, key):
        assert parse_address(text) == Address(topic, key)
        assert Address(topic, key).text() == text

    @given(topic=TOPICS, key=KEYS)
    @example(topic="orders", key=b"$key/")
    @example(topic="orders", key=b"$key/AP8")
    @example(topic="orders", key=b"\xed\xa0\x80")  # a lone surrogate is no UTF-8
    @example(topic="orders", key=b"\x00")
    def test_every_address_is_named_by_its_text(self, topic, key):
        assert parse_address(Address(topic, key).text()) == Address(topic, key)

    @given(topic=TOPICS, key=KEYS)
    def test_the_text_is_a_legal_mqtt_topic_name(self, topic, key):
        text = Address(topic, key).text()
        assert text.encode("utf-8")
        assert not set(text) & {"+", "#", "\x00"}

    @given(st.text(st.characters(exclude_characters="+#\x00", exclude_categories=["Cs"])))
    def test_a_legal_mqtt_topic_name_comes_back_as_it_was(self, text):
        if "/$key/" not in text:
            assert parse_address(text).text() == text

    @given(st.text(st.characters(), max_size=60) | st.text("$key/A8-_=+\ud800").map("orders/".__add__))
    def test_every_text_is_an_address(self, text):
        address = parse_address(text)
        assert "/" not in address.topic
        if address.topic.isascii():
            assert parse_address(address.text()) == address

    @given(topics=st.tuples(TOPICS, TOPICS), keys=st.tuples(KEYS, KEYS))
    def test_two_addresses_never_share_a_text(self, topics, keys):
        first, second = Address(topics[0], keys[0]), Address(topics[1], keys[1])
        assert (first.text() == second.text()) == (first == second)


class TestEscape:
    def test_any_key_may_be_written_escaped(self):
        assert parse_address("orders/$key/ZXUvNw") == parse_address("orders/eu/7")

    @pytest.mark.parametrize("padded", ["AP8=", "AP8"])
    def test_padding_is_optional(self, padded):
        assert parse_address(f"orders/$key/{padded}").key == b"\x00\xff"

    @pytest.mark.parametrize("path", ["$key/A", "$key/AP8===", "$key/AP+8", "$key/AP/8", "$key/AP 8", "$key/ü", "$key/AP8\n"])
    def test_what_is_no_base64url_stands_as_written(self, path):
        address = parse_address(f"orders/{path}")
        assert address.key == path.encode()
        assert parse_address(address.text()) == address


class TestTopicNames:
    @pytest.mark.parametrize("name", ["orders", "a", "A.b_c-9", "...", "a" * 249])
    def test_legal(self, name):
        assert legal_topic_name(name)

    @pytest.mark.parametrize("name", ["", ".", "..", "a" * 250, "a/b", "a b", "ü", "orders\n", "a+b", "#", "$SYS", "a\x00", "４"])
    def test_illegal(self, name):
        assert not legal_topic_name(name)
