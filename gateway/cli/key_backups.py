"""`sprawl keys backup` and its list: copies of the key store, and until when they are to be kept.

What is not listed cannot be named when a topic is deleted, so a backup is made by this command and not by `cp`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.connection import HOME_DEFAULT
from gateway.cli.display import print_facts, print_json, print_table, show_time
from gateway.cli.durations import parse_duration_ms
from gateway.cli.failures import Unusable
from gateway.cli.options import FILE, home_option, json_option

if TYPE_CHECKING:
    from gateway.settings import NodeSection
    from security.crypto.key_backups import KeyBackup, KeyBackups


@click.command()
@click.argument("file", type=FILE)
@click.option("--expires-in", default="90d", show_default=True, metavar="TIME", help="When it is to be destroyed: 30d, 12w.")
@home_option
@json_option
def backup(file: Path, expires_in: str, home: Path | None, as_json: bool) -> None:
    """Copy the key store to FILE and list the copy.

    It holds every topic's key, wrapped: the key-encryption key (kek.json) opens it and belongs somewhere else.
    """
    try:
        lifetime_ms = parse_duration_ms(expires_in)
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint="--expires-in") from None
    made = make_backup(_node(home), file, lifetime_ms)
    facts = _facts(made, made.made_at_ms)
    if as_json:
        print_json(facts)
    else:
        print_facts({name.replace("_", " "): value for name, value in facts.items()} | _times(made))


@click.command()
@home_option
@json_option
def backups(home: Path | None, as_json: bool) -> None:
    """List the key backups: where they are, when they expire, and what they hold that was deleted since."""
    node = _node(home)
    now_ms = _now_ms()
    found = [_facts(one, now_ms) | {"deleted_topics": len(_deleted(one, node))} for one in _listed(node)]
    if as_json:
        for facts in found:
            print_json(facts)
    elif not found:
        click.echo("no key backups: `sprawl keys backup FILE` makes one")
    else:
        rows = [(f["id"], f["path"], show_time(f["expires_at_ms"]), f["state"], f["topics"], f["deleted_topics"]) for f in found]
        columns = ("backup", "file", "expires", "state", "topics", "deleted since")
        print_table(columns, rows, right=("topics", "deleted since"))


@click.command("forget-backup")
@click.argument("backup_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@home_option
@json_option
def forget_backup(backup_id: str, yes: bool, home: Path | None, as_json: bool) -> None:
    """Destroy a key backup and take it off the list. Copies of its file elsewhere are yours to destroy first."""
    if not yes and not click.confirm(f"Destroy key backup {backup_id}? Copies of it elsewhere must be gone already", err=True):
        raise click.UsageError("nothing was changed")
    found = _list_of(_node(home)).forget(backup_id)
    if found is None:
        raise Unusable(f"there is no key backup {backup_id!r}", what_to_do="`sprawl keys backups` lists them")
    if as_json:
        print_json({"forgotten": found.backup_id, "path": found.path})
    else:
        click.echo(f"key backup {found.backup_id} ({found.path}) is destroyed and forgotten")


def make_backup(node: NodeSection, file: Path, lifetime_ms: int) -> KeyBackup:
    """Unusable when the key store does not open: what nobody can open is no backup."""
    from broker.log.keystore_blob import KeyStoreCopies
    from broker.machine import MachineDisk
    from security.crypto.key_backups import KeyBackup, TooManyBackups
    from security.crypto.keystore_format import open_store
    from security.crypto.kms import KEK_FILE, LocalFileKms
    from security.errors import SecurityError

    folder = Path(node.keys)
    if not folder.exists():
        raise Unusable(f"there is no node in {node.home} yet", what_to_do=f"start one with `sprawl serve --home {node.home}`")
    try:
        data = KeyStoreCopies(MachineDisk(folder)).read()
        if data is None:
            raise Unusable(f"{folder} holds no key store", what_to_do="start the node once, or name its home")
        store = open_store(data, LocalFileKms.load(folder / KEK_FILE))
        now_ms = _now_ms()
        made = KeyBackup(
            backup_id=os.urandom(4).hex(),
            path=str(file.resolve()),
            made_at_ms=now_ms,
            expires_at_ms=now_ms + lifetime_ms,
            generation=store.generation,
            topics=frozenset(topic_id.hex() for topic_id in store.entries),
        )
        _list_of(node).write(made, data)
    except FileExistsError:
        raise Unusable(f"{file} exists", what_to_do="choose another name: a backup replaces nothing") from None
    except (SecurityError, TooManyBackups, OSError) as problem:
        raise Unusable("no key backup was made", str(problem)) from None
    return made


def _node(home: Path | None) -> NodeSection:
    from gateway.cli.serve import load_config

    return load_config(home or HOME_DEFAULT, None, ()).node


def _list_of(node: NodeSection) -> KeyBackups:
    from security.crypto.key_backups import KeyBackups

    return KeyBackups(Path(node.keys))


def _listed(node: NodeSection) -> tuple[KeyBackup, ...]:
    from security.errors import SecurityError

    try:
        return _list_of(node).all()
    except (SecurityError, OSError) as problem:
        raise Unusable("the list of key backups cannot be read", str(problem)) from None


def _deleted(one: KeyBackup, node: NodeSection) -> frozenset[str]:
    """Topics whose keys the backup holds and the key store no longer does."""
    from gateway.cli.keys import open_keystore

    return one.topics - {topic_id.hex() for topic_id in open_keystore(node).topic_ids()}


def _facts(one: KeyBackup, now_ms: int) -> dict[str, Any]:
    there = Path(one.path).exists()
    return {
        "id": one.backup_id,
        "path": one.path,
        "made_at_ms": one.made_at_ms,
        "expires_at_ms": one.expires_at_ms,
        "state": "expired: destroy it" if one.expired(now_ms) else "kept" if there else "not found here",
        "generation": one.generation,
        "topics": len(one.topics - {bytes(16).hex()}),
    }


def _times(one: KeyBackup) -> dict[str, Any]:
    return {"made at ms": show_time(one.made_at_ms), "expires at ms": show_time(one.expires_at_ms)}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
