"""`sprawl log`: examine the encrypted log of a node that is stopped, and mend what can be mended.

It reads the node's files itself, under the folder's lock: a running node is refused, not disturbed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.connection import HOME_DEFAULT
from gateway.cli.display import print_json, print_table, show_size
from gateway.cli.failures import Unusable, printable
from gateway.cli.options import FILE, home_option, json_option

if TYPE_CHECKING:
    from broker.log.findings import Finding, Verdict
    from broker.log.repair import Action
    from gateway.config import Config

DAMAGED = 1  # the exit code of a log that is not whole


def _folder_options(verb: Any) -> Any:
    config = click.option(
        "--config", "config_file", type=FILE, envvar="SPRAWL_CONFIG", show_envvar=True, help="TOML file of settings."
    )
    return home_option(config(json_option(verb)))


@click.group()
def log() -> None:
    """Examine and mend the log of a stopped node."""


@log.command()
@_folder_options
def verify(home: Path | None, config_file: Path | None, as_json: bool) -> None:
    """Check every byte that can be checked: headers, tags, chains, footers, both manifests, snapshot, view. Changes nothing.

    Exit code 0: whole (what was lost before and is on record does not count); 1: something is lost, or waits to be mended.

    \b
    sprawl log verify --home .sprawl
    """
    with _folder(_config(home, config_file)) as folder, folder.locked("sprawl log verify"):
        verdict = folder.examine()
    _show_verdict(verdict, as_json=as_json)
    if not verdict.whole:
        sys.exit(DAMAGED)


@log.command()
@_folder_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
def repair(home: Path | None, config_file: Path | None, as_json: bool, dry_run: bool) -> None:
    """Mend what stands somewhere else whole, and put on record what is lost. Nothing is dropped silently.

    Bytes that are lost, or cut as an unconfirmed tail, are first copied to `quarantine/` in the data folder, sealed as they are.
    Exit code 0: the log is whole now, or was; 1: with --dry-run, there is something to do.

    \b
    sprawl log repair --home .sprawl --dry-run
    sprawl log repair --home .sprawl
    """
    from broker.log.repair import plan

    with _folder(_config(home, config_file)) as folder:
        with folder.locked("sprawl log repair"):
            verdict = folder.examine()
        actions = plan(verdict)
        if actions and not dry_run:
            folder.repair(verdict)
    _show_actions(actions, dry_run=dry_run, as_json=as_json)
    if dry_run and actions:
        sys.exit(DAMAGED)


# -- the folder -----------------------------------------------------------------------------------------------------------


def _config(home: Path | None, config_file: Path | None) -> Config:
    from gateway.cli.serve import load_config

    return load_config(home or (None if config_file else HOME_DEFAULT), config_file, ())


class Folder:
    """The data folder and the keys of a node that is not running."""

    def __init__(self, config: Config) -> None:
        from broker.log.keystore_blob import KeyStoreCopies
        from broker.machine import MachineDisk, MachineSeams
        from security.crypto.keystore import KeyStore
        from security.crypto.kms import KEK_FILE, LocalFileKms

        self._config = config
        self.data, keys = Path(config.node.data), Path(config.node.keys)
        if not self.data.is_dir():
            advice = f"name the node's home by --home; one is made by `sprawl serve --home {config.node.home}`"
            raise Unusable(f"there is no log in {self.data}", what_to_do=advice)
        if not (keys / KEK_FILE).exists():
            raise Unusable(f"{keys} holds no key-encryption key", what_to_do="bring the keys folder back from the key backup")
        self.kms = LocalFileKms.load(keys / KEK_FILE)
        self.keys = MachineDisk(keys)
        self.seams = MachineSeams(self.data)
        self._copies = KeyStoreCopies(self.keys)
        self._keystore = KeyStore(self._copies, self.kms, os.urandom)
        self._keystore.load()

    @contextmanager
    def locked(self, holder: str) -> Iterator[None]:
        from broker.engine.embedded import LOCK_PATH

        release = self.seams.disk.lock(LOCK_PATH, f"{holder} of process {os.getpid()}")
        try:
            yield
        finally:
            release()

    def examine(self) -> Verdict:
        from broker.log.findings import Finding, Severity
        from broker.log.store import VIEW_FOLDER
        from broker.log.verify import Verifier

        seams = self.seams
        view = (lambda: seams.stores.open_for_reading(VIEW_FOLDER)) if seams.disk.exists(VIEW_FOLDER) else None
        with _progress() as progress:
            verifier = Verifier(seams.disk, self._keystore, seams.random, view, progress.advance)
            progress.begin(verifier.bytes_to_read())
            verdict = verifier.run()
        verdict.findings[:0] = [
            Finding(severity=Severity.MENDABLE, what="key store", path=str(self.keys.root / path), problem=problem)
            for path, problem in self._copies.wrong
        ]
        return verdict

    def repair(self, verdict: Verdict) -> None:
        import asyncio

        from broker.log.keystore_blob import KeyStoreBlob
        from broker.log.repair import Repair
        from security.crypto.keystore import KeyStore

        keystore = KeyStore(KeyStoreBlob(self.keys), self.kms, os.urandom)  # its load makes both copies alike
        asyncio.run(Repair(self.seams, keystore, self._config.log).run(verdict))

    def close(self) -> None:
        self.seams.executor.close()


@contextmanager
def _folder(config: Config) -> Iterator[Folder]:
    from broker.errors import BrokerError
    from security.errors import SecurityError

    folder: Folder | None = None
    try:
        folder = Folder(config)
        yield folder
    except (BrokerError, SecurityError) as error:
        raise Unusable("the log cannot be examined", str(error)) from None
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise Unusable("the log cannot be read", f"{error.strerror or error}{where}") from None
    finally:
        if folder is not None:
            folder.close()


# -- what is shown --------------------------------------------------------------------------------------------------------


class _Progress:
    """One line on a terminal, at most every 64 MiB; nothing elsewhere."""

    STEP_BYTES = 64 * 1024 * 1024

    def __init__(self) -> None:
        self._total = self._done = self._shown = 0

    def begin(self, total: int) -> None:
        self._total = total

    def advance(self, size: int) -> None:
        self._done += size
        if self._done - self._shown >= self.STEP_BYTES and sys.stderr.isatty():
            self._shown = self._done
            click.echo(f"\r{show_size(self._done)} of {show_size(self._total)} ", nl=False, err=True)

    def end(self) -> None:
        if self._shown:
            click.echo("\r" + " " * 40 + "\r", nl=False, err=True)


@contextmanager
def _progress() -> Iterator[_Progress]:
    progress = _Progress()
    try:
        yield progress
    finally:
        progress.end()


def _show_verdict(verdict: Verdict, *, as_json: bool) -> None:
    import msgspec

    from broker.log.findings import Severity

    counts = {severity.value: verdict.count(severity) for severity in Severity}
    if as_json:
        files = [msgspec.to_builtins(file) for file in verdict.files]
        findings = [_finding_facts(found) for found in verdict.findings]
        facts = {"whole": verdict.whole, "cluster_id": verdict.cluster_id, "counts": counts, "files": files, "findings": findings}
        print_json(facts)
        return
    rows = [(f.path, f.kind, show_size(f.bytes), f.groups or "", f.batches or "", _worst(verdict, f.path)) for f in verdict.files]
    print_table(("file", "kind", "size", "groups", "batches", "found"), rows, right=("size", "groups", "batches"))
    for found in verdict.findings:
        click.echo(printable(found.describe()))
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing found"
    click.echo(f"{'whole' if verdict.whole else 'NOT whole'}: {told}")
    if not verdict.whole:
        click.echo("see what can be done about it: sprawl log repair --dry-run", err=True)


def _worst(verdict: Verdict, path: str) -> str:
    """The severity of a file's worst finding; they are ordered from worst to least."""
    from broker.log.findings import Severity

    severities = {found.severity for found in verdict.findings if found.path == path}
    return next((severity.value for severity in Severity if severity in severities), "whole")


def _finding_facts(found: Finding) -> dict[str, Any]:
    import msgspec

    facts: dict[str, Any] = msgspec.to_builtins(found)
    facts["severity"] = found.severity.value
    if found.topic_id:
        facts["topic_id"] = found.topic_id.hex()
    return facts


def _show_actions(actions: list[Action], *, dry_run: bool, as_json: bool) -> None:
    import msgspec

    if as_json:
        print_json({"dry_run": dry_run, "actions": [msgspec.to_builtins(action) for action in actions]})
        return
    for action in actions:
        where = action.path if action.start is None else f"{action.path} bytes {action.start} to {(action.end or 1) - 1}"
        click.echo(printable(f"{where}: {action.what}"))
    done = "would be done" if dry_run else "done"
    click.echo(f"{len(actions)} things {done}" if actions else "nothing to mend")
