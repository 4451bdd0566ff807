"""`sprawl dlq`: records that consumers gave up, why, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote

import click

from gateway.cli.client import Client
from gateway.cli.connection import Connection
from gateway.cli.display import print_facts, print_json, print_table, show_time
from gateway.cli.failures import printable
from gateway.cli.options import connection_options, json_option

PAGE_LETTERS = 500  # of one request, to list as to replay: at most 1,000 are taken
VALUE_CHARACTERS_SHOWN = 60


@click.group()
def dlq() -> None:
    """List, show, replay and purge dead letters."""


@dlq.command("list")
@click.argument("topic", required=False)
@click.option("--count", type=click.IntRange(1), help="Stop after so many letters.")
@click.option("--consumer", help="Only what this consumer gave up.")
@json_option
@connection_options
def list_letters(connection: Connection, topic: str | None, count: int | None, consumer: str | None, as_json: bool) -> None:
    """List the topics that hold dead letters, or the letters of the dead-letter TOPIC.

    \b
    sprawl dlq list
    sprawl dlq list orders.dlq --consumer billing
    """
    with Client(connection) as client:
        if topic is None:
            _print_topics(client.call("GET", "/v1/dead-letters")["topics"], as_json)
            return
        found = islice(_letters(client, topic, consumer, until=None), count)
        if as_json:
            for letter in found:
                print_json(letter)
            return
        rows = [_row(letter) for letter in found]
    if rows:
        print_table(("letter", "given up", "reason", "attempts", "consumer", "from", "key", "value"), rows, right=("attempts",))
    else:
        click.echo(f"no dead letters in {topic}")


@dlq.command()
@click.argument("topic")
@click.argument("letter", metavar="PARTITION:OFFSET")
@json_option
@connection_options
def show(connection: Connection, topic: str, letter: str, as_json: bool) -> None:
    """Show one dead letter of TOPIC whole, as in `sprawl dlq show orders.dlq 0:17`."""
    partition, offset = _place(letter)
    with Client(connection) as client:
        found = client.call("GET", f"{_path(topic)}/{partition}/{offset}")
    if as_json:
        print_json(found)
        return
    origin, record = found["origin"], found["record"]
    print_facts(
        {
            "letter": _show_place(record),
            "given up": show_time(record["timestamp"]),
            "reason": found["reason"],
            "detail": found["detail"] or "none",
            "attempts": found["attempts"],
            "consumer": f"{found['consumer']} of {found['owner']}",
            "from": f"{origin['topic']} {origin['partition']}:{origin['offset']}",
            "published": show_time(origin["timestamp"]),
            "id": record["id"],
            "key": _show_key(record),
            "headers": record.get("headers", {}),
        }
    )
    click.echo(printable(_show_value(record)))


@dlq.command()
@click.argument("topic")
@click.argument("letters", nargs=-1, metavar="[PARTITION:OFFSET]...")
@click.option("--all", "everything", is_flag=True, help="All letters that are there now.")
@click.option("--consumer", help="With --all: only what this consumer gave up.")
@json_option
@connection_options
def replay(
    connection: Connection, topic: str, letters: tuple[str, ...], everything: bool, consumer: str | None, as_json: bool
) -> None:
    """Publish dead letters of TOPIC again where they came from. They stay until they are purged.

    \b
    sprawl dlq replay orders.dlq 0:17 0:18
    sprawl dlq replay orders.dlq --all --consumer billing
    """
    if bool(letters) == everything or (consumer is not None and not everything):
        raise click.UsageError("name letters as PARTITION:OFFSET, or give --all (and with it --consumer)")
    places = [dict(zip(("partition", "offset"), _place(letter), strict=True)) for letter in letters]
    with Client(connection) as client:
        chosen = iter(places) if letters else _places(client, topic, consumer)
        total = 0
        while page := list(islice(chosen, PAGE_LETTERS)):
            path = f"/v1/topics/{quote(topic, safe='')}/dead-letter-replays"
            for one in client.call("POST", path, document={"letters": page})["replayed"]:
                total += 1
                if as_json:
                    print_json(one)
                else:
                    record = one["record"]
                    place = f"{record['topic']} {record['partition']}:{record['offset']}"
                    click.echo(f"{one['partition']}:{one['offset']} -> {printable(place)}")
    if not as_json:
        click.echo(f"{total} replayed", err=True)


@dlq.command()
@click.argument("topic")
@click.option("--before", "letter", metavar="PARTITION:OFFSET", help="Only letters of this partition below this offset.")
@click.option("--all", "everything", is_flag=True, help="All letters.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@connection_options
def purge(connection: Connection, topic: str, letter: str | None, everything: bool, yes: bool, as_json: bool) -> None:
    """Let dead letters of TOPIC go, for good.

    \b
    sprawl dlq purge orders.dlq --before 0:18
    sprawl dlq purge orders.dlq --all
    """
    if (letter is None) != everything:
        raise click.UsageError("give --before PARTITION:OFFSET or --all")
    query = {}
    if letter is not None:
        partition, offset = _place(letter)
        query = {"partition": str(partition), "before_offset": str(offset)}
    what = "all dead letters" if letter is None else f"the dead letters before {letter}"
    if not yes and not click.confirm(f"Let {what} of {topic} go, for good?", err=True):
        raise click.UsageError("not purged")
    with Client(connection) as client:
        left = client.call("DELETE", _path(topic), query=query)
    if as_json:
        print_json(left)
        return
    held = sum(one["high_watermark"] - one["log_start"] for one in left["partitions"])
    click.echo(f"purged; {held} left in {topic}")


def _letters(client: Client, topic: str, consumer: str | None, until: str | None) -> Iterator[dict[str, Any]]:
    """Page by page, to the end as it is when it is reached, or to a cursor."""
    where = {"offset": "earliest"}
    while True:
        page = client.call("GET", _path(topic), query={"limit": str(PAGE_LETTERS), **where})
        for lost in page["damage"]:
            click.echo(f"lost: {topic}/{lost['partition']} offsets {lost['from_offset']} to {lost['to_offset'] - 1}", err=True)
        for letter in page["dead_letters"]:
            if consumer is None or letter["consumer"] == consumer:
                yield letter
        if page["at_end"] or (until is not None and _order(page["next_cursor"]) >= _order(until)):
            return
        where = {"cursor": page["next_cursor"]}


def _places(client: Client, topic: str, consumer: str | None) -> Iterator[dict[str, int]]:
    """Of the letters that are there now: what a consumer gives up again meanwhile is not replayed for ever."""
    until = client.call("GET", _path(topic), query={"offset": "latest", "limit": "1"})["next_cursor"]
    records = (letter["record"] for letter in _letters(client, topic, consumer, until))
    return iter([{"partition": record["partition"], "offset": record["offset"]} for record in records])


def _order(cursor: str) -> tuple[int, ...]:
    return tuple(int(part) for part in cursor.split("-"))


def _print_topics(topics: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for topic in topics:
            print_json(topic)
    elif not topics:
        click.echo("no dead letters: no consumer gave a record up")
    else:
        rows = [(topic["topic"], ", ".join(topic["of"]), topic["letters"]) for topic in topics]
        print_table(("topic", "dead letters of", "letters"), rows, right=("letters",))


def _row(letter: dict[str, Any]) -> tuple[Any, ...]:
    origin, record = letter["origin"], letter["record"]
    reason = f"{letter['reason']}: {letter['detail']}" if letter["detail"] else letter["reason"]
    value = _show_value(record)
    return (
        _show_place(record),
        show_time(record["timestamp"]),
        reason,
        letter["attempts"],
        letter["consumer"],
        f"{origin['topic']} {origin['partition']}:{origin['offset']}",
        _show_key(record),
        value if len(value) <= VALUE_CHARACTERS_SHOWN else value[: VALUE_CHARACTERS_SHOWN - 1] + "…",
    )


def _show_place(record: dict[str, Any]) -> str:
    return f"{record['partition']}:{record['offset']}"


def _show_key(record: dict[str, Any]) -> str:
    return f"base64 {record['key64']}" if "key64" in record else record.get("key") or ""


def _show_value(record: dict[str, Any]) -> str:
    if "value64" in record:
        return f"base64 {record['value64']}"
    if "text" in record:
        return str(record["text"])
    return json.dumps(record.get("value"), ensure_ascii=False)


def _place(text: str) -> tuple[int, int]:
    partition, colon, offset = text.partition(":")
    if not colon or not all(part.isascii() and part.isdigit() and len(part) <= 19 for part in (partition, offset)):
        raise click.BadParameter(f"{text!r}: write PARTITION:OFFSET, as in 0:17")
    return int(partition), int(offset)


def _path(topic: str) -> str:
    return f"/v1/topics/{quote(topic, safe='')}/dead-letters"
