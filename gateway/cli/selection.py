"""What of a node a verb reads: a topic, one key of it, or what a filter wants of many topics.

orders                     every record of the topic
orders/eu/7                those with key eu/7
orders/eu/+   orders/#     MQTT's wildcards: one level, and that level with all below
+/status      "#"          the same over topics, as far as they may be read
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import click

from gateway.cli.addresses import parse_address

Verb = TypeVar("Verb", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Selection:
    """With a `filter`, topic and key are not looked at. `headers` are name and value of what a record must have."""

    topic: str
    key: str | None = None
    filter: str | None = None
    key_prefix: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def as_message(self) -> dict[str, Any]:
        """The members of a WebSocket `subscribe`."""
        if self.filter is None:
            return {"topic": self.topic} if self.key is None else {"topic": self.topic, "key": self.key}
        members: dict[str, Any] = {"address": self.filter}
        if self.key_prefix is not None:
            members["key_prefix"] = self.key_prefix
        if self.headers:
            members["headers"] = dict(self.headers)
        return {"filter": members}

    def path(self) -> str:
        """Of a REST read."""
        return "/v1/records" if self.filter is not None else f"/v1/topics/{quote(self.topic, safe='')}/records"

    def query(self) -> dict[str, str]:
        """Of the same read, beside its position."""
        if self.filter is None:
            return {} if self.key is None else {"key": self.key}
        query = {"address": self.filter}
        if self.key_prefix is not None:
            query["key_prefix"] = self.key_prefix
        if self.headers:
            query["headers"] = "\n".join(f"{name}:{value}" for name, value in self.headers)
        return query


def filter_options(verb: Verb) -> Verb:
    """`key_prefix: str | None` and `headers: tuple[str, ...]`, for `parse_selection`."""
    flags = (
        click.option("--key-prefix", metavar="TEXT", help="Only records whose key begins with this."),
        click.option(
            "--header", "headers", multiple=True, metavar="NAME=VALUE", help="Only records with this header; may be repeated."
        ),
    )
    for flag in reversed(flags):
        verb = flag(verb)
    return verb


def parse_selection(address: str, key: str | None, key_prefix: str | None, headers: Sequence[str]) -> Selection:
    """Wildcards are levels of ADDRESS that are + or #; a key that holds some is given by --key."""
    wanted = parse_headers(headers)
    wildcards = key is None and any(level in ("+", "#") for level in address.split("/"))
    if not wildcards and key_prefix is None and not wanted:
        return Selection(*parse_address(address, key))
    if not wildcards:
        topic, key = parse_address(address, key)
        if key is not None and any(level in ("+", "#") for level in key.split("/")):
            raise click.UsageError("--key-prefix and --header are for filters, and a key with wildcards is no part of one")
        address = topic if key is None else f"{topic}/{key}"
    return Selection("", None, address, key_prefix, wanted)


def parse_headers(headers: Sequence[str]) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for text in headers:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--header")
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice", param_hint="--header")
        if ":" in name or "\n" in text:
            raise click.BadParameter(f"{text!r} holds a colon in its name, or a line break", param_hint="--header")
        found[name] = value
    return tuple(found.items())
