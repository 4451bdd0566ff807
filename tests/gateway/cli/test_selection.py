"""Addresses with wildcards and filters, as they go to the node."""

from __future__ import annotations

import click
import pytest

from gateway.cli.selection import Selection, parse_selection


@pytest.mark.parametrize(
    ("address", "key", "message", "path", "query"),
    [
        ("orders", None, {"topic": "orders"}, "/v1/topics/orders/records", {}),
        ("orders/eu/7", None, {"topic": "orders", "key": "eu/7"}, "/v1/topics/orders/records", {"key": "eu/7"}),
        ("orders", "eu/+", {"topic": "orders", "key": "eu/+"}, "/v1/topics/orders/records", {"key": "eu/+"}),
        ("orders/a+b", None, {"topic": "orders", "key": "a+b"}, "/v1/topics/orders/records", {"key": "a+b"}),
        ("orders/eu/+", None, {"filter": {"address": "orders/eu/+"}}, "/v1/records", {"address": "orders/eu/+"}),
        ("#", None, {"filter": {"address": "#"}}, "/v1/records", {"address": "#"}),
    ],
)
def test_addresses(address: str, key: str | None, message: object, path: str, query: object) -> None:
    selection = parse_selection(address, key, None, ())
    assert (selection.as_message(), selection.path(), selection.query()) == (message, path, query)


def test_headers_and_prefixes_make_a_filter() -> None:
    selection = parse_selection("orders", None, "eu/", ["type=paid", "to=a=b:c"])
    assert selection.as_message() == {
        "filter": {"address": "orders", "key_prefix": "eu/", "headers": {"type": "paid", "to": "a=b:c"}}
    }
    assert selection.query() == {"address": "orders", "key_prefix": "eu/", "headers": "type:paid\nto:a=b:c"}
    assert parse_selection("orders", "eu/7", None, ["a=b"]).filter == "orders/eu/7"
    assert parse_selection("orders/", None, None, ["a=b"]).filter == "orders/"


@pytest.mark.parametrize("header", ["type", "=x", "a:b=c", "a=b\nc"])
def test_what_is_no_header_is_refused(header: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_selection("orders", None, None, [header])


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="twice"):
        parse_selection("orders", None, None, ["a=1", "a=2"])
    with pytest.raises(click.UsageError):
        parse_selection("orders", "eu/+", None, ["a=1"])
    assert parse_selection("orders", "eu/+", None, ()) == Selection("orders", "eu/+")
