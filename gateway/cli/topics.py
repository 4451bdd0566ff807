"""`sprawl topics`: what there is to publish to, and how it is kept."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from gateway.cli.client import Client
from gateway.cli.connection import Connection
from gateway.cli.display import print_facts, print_json, print_table, show_time
from gateway.cli.options import connection_options, json_option

CONFIG_HELP = "Set a config, NAME=VALUE; may be repeated."


@click.group()
def topics() -> None:
    """List, create, describe, alter and delete topics."""


@topics.command("list")
@json_option
@connection_options
def list_topics(connection: Connection, as_json: bool) -> None:
    """List the topics that you may see."""
    with Client(connection) as client:
        found = client.call("GET", "/v1/topics")["topics"]
    if as_json:
        for topic in found:
            print_json(topic)
    elif not found:
        click.echo("no topics yet: publish to one, or `sprawl topics create NAME`")
    else:
        print_table(
            ("topic", "partitions", "configs"),
            [(topic["name"], topic["partitions"], _show_configs(topic["configs"])) for topic in found],
            right=("partitions",),
        )


@topics.command()
@click.argument("name")
@click.option("--partitions", type=click.IntRange(1), help="How many; the node's default otherwise.")
@click.option("--config", "configs", multiple=True, metavar="NAME=VALUE", help=CONFIG_HELP)
@json_option
@connection_options
def create(connection: Connection, name: str, partitions: int | None, configs: tuple[str, ...], as_json: bool) -> None:
    """Create a topic."""
    document: dict[str, Any] = {"name": name, "configs": _parse_configs(configs)}
    if partitions is not None:
        document["partitions"] = partitions
    with Client(connection) as client:
        topic = client.call("POST", "/v1/topics", document=document)
    _print_topic(topic, as_json)


@topics.command()
@click.argument("name")
@json_option
@connection_options
def describe(connection: Connection, name: str, as_json: bool) -> None:
    """Show a topic with the offsets of its partitions."""
    with Client(connection) as client:
        topic = client.call("GET", _path(name))
    _print_topic(topic, as_json)


@topics.command()
@click.argument("name")
@click.option("--partitions", type=click.IntRange(1), help="Grow to so many; records of a key may then change partition.")
@click.option("--config", "configs", multiple=True, metavar="NAME=VALUE", help=CONFIG_HELP)
@click.option("--reset", "resets", multiple=True, metavar="NAME", help="Set a config back to its default; may be repeated.")
@json_option
@connection_options
def alter(
    connection: Connection, name: str, partitions: int | None, configs: tuple[str, ...], resets: tuple[str, ...], as_json: bool
) -> None:
    """Change a topic's configs, or let it grow."""
    changes: dict[str, Any] = {**_parse_configs(configs), **dict.fromkeys(resets)}
    document = {"partitions": partitions, "configs": changes}
    document = {member: value for member, value in document.items() if value}
    if not document:
        raise click.UsageError("nothing to change: give --partitions, --config or --reset")
    with Client(connection) as client:
        topic = client.call("PATCH", _path(name), document=document)
    _print_topic(topic, as_json)


@topics.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@connection_options
def delete(connection: Connection, name: str, yes: bool, as_json: bool) -> None:
    """Delete a topic, its records and its keys. It cannot be undone."""
    if not yes and not click.confirm(f"Delete the topic {name} with all its records, for good?", err=True):
        raise click.UsageError("not deleted")
    with Client(connection) as client:
        answer = client.call("DELETE", _path(name))
    kept = answer.get("key_backups", []) if isinstance(answer, dict) else []
    if as_json:
        print_json({"deleted": name, **({"key_backups": kept} if kept else {})})
        return
    click.echo(f"deleted {name}")
    for copy in kept:
        click.echo(f"its key is still in key backup {copy['id']}: destroy it (`sprawl keys backups` says where it is)", err=True)


@topics.command("delete-records")
@click.argument("name")
@click.option("--partition", type=click.IntRange(0), required=True, help="Of which partition.")
@click.option("--before", type=click.IntRange(0), metavar="OFFSET", help="Records below this offset.")
@click.option("--all", "everything", is_flag=True, help="All records there are now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@connection_options
def delete_records(
    connection: Connection, name: str, partition: int, before: int | None, everything: bool, yes: bool, as_json: bool
) -> None:
    """Delete the oldest records of a partition. It cannot be undone; offsets go on where they are."""
    if everything == (before is not None):
        raise click.UsageError("say which records: --before OFFSET, or --all")
    what = "all records" if before is None else f"the records below offset {before}"
    if not yes and not click.confirm(f"Delete {what} of {name}/{partition}, for good?", err=True):
        raise click.UsageError("not deleted")
    document = {"partition": partition, **({} if before is None else {"before_offset": before})}
    with Client(connection) as client:
        answer = client.call("POST", f"{_path(name)}/delete-records", document=document)
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{name}/{partition} begins at offset {answer['log_start']} now")


def _print_topic(topic: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(topic)
        return
    partitions = topic["partitions"]  # their number, or, where the topic was described, each with its offsets
    listed = partitions if isinstance(partitions, list) else []
    print_facts(
        {
            "topic": topic["name"],
            "id": topic["id"],
            "partitions": len(listed) or partitions,
            "configs": _show_configs(topic["configs"]) or "all default",
            "created": show_time(topic["created_at_ms"]),
        }
    )
    if listed:
        columns = ("partition", "log start", "next offset", "offsets held")
        rows = [
            (one["partition"], one["log_start"], one["high_watermark"], one["high_watermark"] - one["log_start"])
            for one in listed
        ]
        click.echo()
        print_table(columns, rows, right=columns)


def _show_configs(configs: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(configs.items()))


def _parse_configs(pairs: tuple[str, ...]) -> dict[str, str]:
    configs: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals or name in configs:
            raise click.BadParameter(f"{pair!r}: write NAME=VALUE, each name once", param_hint="--config")
        configs[name] = value
    return configs


def _path(name: str) -> str:
    return f"/v1/topics/{quote(name, safe='')}"
