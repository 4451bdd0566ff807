"""`sprawl keys`: which keys a node's home holds, what they open, and whether they are kept as they should be.

It reads the home's files and no running node: the time to ask is when a node does not start.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.connection import HOME_DEFAULT
from gateway.cli.display import print_facts, print_json
from gateway.cli.failures import Unusable
from gateway.cli.key_backups import backup, backups, forget_backup
from gateway.cli.options import home_option, json_option

if TYPE_CHECKING:
    from gateway.settings import NodeSection
    from security.crypto.keystore import KeyStore


@click.group()
def keys() -> None:
    """Look after the keys of a node on this machine."""


for verb in (backup, backups, forget_backup):
    keys.add_command(verb)


@keys.command()
@home_option
@json_option
def status(home: Path | None, as_json: bool) -> None:
    """Show the key-encryption key, and how many topics it opens. No key is printed."""
    from gateway.cli.serve import load_config

    facts = key_status(load_config(home or HOME_DEFAULT, None, ()).node)
    if as_json:
        print_json(facts)
    else:
        print_facts({name.replace("_", " "): _shown(value) for name, value in facts.items()})


def key_status(node: NodeSection) -> dict[str, Any]:
    """Facts of the key store of a node's home. Unusable when it does not open: the message says which key is missing or wrong."""
    from security.crypto.keystore import SYSTEM_TOPIC_ID
    from security.crypto.kms import KEK_FILE

    folder, data = Path(node.keys), Path(node.data)
    kek = folder / KEK_FILE
    store = open_keystore(node)
    return {
        "cluster_id": store.cluster_id.hex(),
        "keys_folder": str(folder),
        "data_folder": str(data),
        "active_key": store.active_kek_id,
        "keys_needed": store.kek_ids(),
        "generation": store.generation,
        "topics": len(store.topic_ids() - {SYSTEM_TOPIC_ID}),
        "mode": f"{kek.stat().st_mode & 0o777:04o}",
        "same_disk_as_data": data.exists() and folder.stat().st_dev == data.stat().st_dev,
    }


def open_keystore(node: NodeSection) -> KeyStore:
    """The key store of a node's home, read and not changed: the node may be running. Unusable, saying what is missing."""
    from broker.log.keystore_blob import KeyStoreCopies
    from broker.machine import MachineDisk
    from security.crypto.keystore import KeyStore
    from security.crypto.kms import KEK_FILE, LocalFileKms
    from security.errors import SecurityError

    folder = Path(node.keys)
    if not Path(node.data).exists():
        raise Unusable(f"there is no node in {node.home} yet", what_to_do=f"start one with `sprawl serve --home {node.home}`")
    if not (folder / KEK_FILE).exists():
        raise Unusable(f"{folder} holds no key-encryption key", what_to_do="bring the keys folder back from the key backup")
    try:
        store = KeyStore(KeyStoreCopies(MachineDisk(folder)), LocalFileKms.load(folder / KEK_FILE), os.urandom)
        store.load()
    except (SecurityError, OSError) as problem:
        raise Unusable("the key store does not open", str(problem)) from None
    return store


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)
