"""The records of a window of the log, read page by page over REST, each with the cursor after it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import msgspec

from broker.delivery.replay import BeforeMessage, BeforeOffset, BeforeTime, End, ends
from gateway.cli.client import Client, Retry
from gateway.cli.failures import Unusable
from gateway.cli.feed import Gone, Lost
from gateway.cli.positions import Position, parse_position
from gateway.cli.selection import Selection

PAGE_RECORDS = 1_000

# A message id holds the time it was made at; the record's own time may be earlier, by as much as clocks differ and senders wait.
ID_EARLIER_MS = 60 * 60 * 1_000

_MESSAGE_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

Where = dict[str, str]
"""Members of a query that say where a read begins."""


class Meta(msgspec.Struct, gc=False):
    """What a replay looks at in a record."""

    id: str | None
    topic: str
    partition: int
    offset: int
    timestamp: int
    cursor: str


class Replayed(NamedTuple):
    """`text` is the record's JSON as the node wrote it."""

    text: bytes
    meta: Meta


class Page(msgspec.Struct):
    records: list[msgspec.Raw]
    next_cursor: str
    at_end: bool
    damage: list[Lost] = []
    gaps: list[Gone] = []


class Begin(NamedTuple):
    """A position, or the record that has this id."""

    position: Position | None
    message_id: str = ""


class Until(NamedTuple):
    """Where the window ends: at a record (`end`), or at a cursor; the end of the log as it is now bounds both."""

    end: End = None
    cursor: str = ""


def parse_begin(text: str, now_ms: int) -> Begin:
    """As `subscribe --from`, and id:<message id>. Raises ValueError."""
    if text.strip().lower().startswith("id:"):
        return Begin(None, _parse_id(text))
    return Begin(parse_position(text, now_ms))


def parse_until(text: str, now_ms: int, partition: int) -> Until:
    """offset:N, id:<message id>, cursor:C, a time. Raises ValueError."""
    if text.strip().lower().startswith("id:"):
        return Until(BeforeMessage(_parse_id(text)))
    position = parse_position(text, now_ms)
    if position.kind == "offset":
        return Until(BeforeOffset(partition, position.number))
    if position.kind == "timestamp":
        return Until(BeforeTime(position.number))
    if position.kind == "earliest":
        raise ValueError("a window that ends at the beginning is empty")
    return Until(cursor=position.cursor)


def _parse_id(text: str) -> str:
    message_id = text.strip()[len("id:") :].strip().lower()
    if not _MESSAGE_ID.fullmatch(message_id):
        raise ValueError(f"{text[:60]!r} is no message id: give one as `subscribe --json` shows it")
    return message_id


class WindowReader:
    """`end_cursor` is where the window ends at the latest, known from `open` on. Failures: those of the client, and Unusable."""

    def __init__(
        self, client: Client, retry: Retry, selection: Selection, *, partition: int, notice: Callable[[str], None]
    ) -> None:
        self._client, self._retry, self._notice, self._partition = client, retry, notice, partition
        self._path = "/v1/records"
        if selection.filter is None:
            selection = Selection("", None, _literal(selection), None, ())
        self._query = selection.query()
        self.end_cursor = ""

    def open(self, begin: Begin, until: Until) -> Where:
        """Fix both ends of the window; returns where it begins."""
        newest = self._page({"offset": "latest", "limit": "1"}).next_cursor
        self.end_cursor = until.cursor or newest
        if begin.position is None:
            return self._find(begin.message_id)
        where = begin.position.as_query()
        return where | {"partition": str(self._partition)} if begin.position.kind == "offset" else where

    def pages(self, where: Where, until: Until) -> Iterator[list[Replayed]]:
        """From there to the window's end."""
        while True:
            page = self._page(where | {"until": self.end_cursor, "limit": str(PAGE_RECORDS)})
            found = [Replayed(bytes(text), msgspec.json.decode(text, type=Meta)) for text in page.records]
            for number, (_, meta) in enumerate(found):
                if ends(until.end, meta.partition, meta.offset, meta.timestamp, meta.id):
                    yield found[:number]
                    return
            yield found
            if page.at_end:
                return
            where = {"cursor": page.next_cursor}

    def _find(self, message_id: str) -> Where:
        """Near the time it was made at first, and then everywhere."""
        made_at_ms = int(message_id[:8] + message_id[9:13], 16)
        near: Where = {"timestamp": str(max(0, made_at_ms - ID_EARLIER_MS))}
        for where in (near, {"offset": "earliest"}):
            before = where
            for page in self.pages(where, Until()):
                for _, meta in page:
                    if meta.id == message_id:
                        return before
                    before = {"cursor": meta.cursor}
        raise Unusable(
            f"no record has the id {message_id}",
            f"looked to cursor {self.end_cursor}",
            "check the id and the address; what has expired or was removed by retention is not found either",
        )

    def _page(self, query: Where) -> Page:
        page = self._retry.run(
            lambda: cast("list[dict[str, Any]]", [self._client.call("GET", self._path, query=self._query | query, kind=Page)]),
            reached=bool(self.end_cursor),
        )[0]
        assert isinstance(page, Page)
        for lost in (*page.damage, *page.gaps):
            self._notice(str(lost))
        return page


def _literal(selection: Selection) -> str:
    """The address of a topic or key as a filter, in which no character of the key is a wildcard."""
    from broker.topics.addresses import Address

    return selection.topic if selection.key is None else Address(selection.topic, selection.key.encode()).text()
