"""`topic/key`, as typed."""

import click
import pytest

from gateway.cli.addresses import parse_address


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("orders", None, ("orders", None)),
        ("orders/", None, ("orders", "")),
        ("orders/eu/7", None, ("orders", "eu/7")),
        ("orders//", None, ("orders", "/")),
        ("orders", "eu/7", ("orders", "eu/7")),
        ("orders", "", ("orders", "")),
        ("orders/größe 1", None, ("orders", "größe 1")),
    ],
)
def test_forms(text: str, key: str | None, expected: tuple[str, str | None]) -> None:
    assert parse_address(text, key) == expected


@pytest.mark.parametrize(
    ("text", "key"), [("", None), ("/orders", None), ("orders/a", "b"), ("orders/\udcff", None), ("o", "\udcff")]
)
def test_refusals_are_usage_errors(text: str, key: str | None) -> None:
    with pytest.raises(click.UsageError) as refusal:
        parse_address(text, key)
    assert refusal.value.exit_code == 2
