"""`sprawl doctor`: looks at everything a node needs on this machine, and says what to do about what is not well."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from gateway.cli.display import print_json
from gateway.cli.failures import printable
from gateway.cli.options import FILE, home_option, json_option

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command()
@home_option
@click.option("--config", "config_file", type=FILE, envvar="SPRAWL_CONFIG", show_envvar=True, help="TOML file of settings.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="One setting; may be repeated.")
@json_option
@click.pass_context
def doctor(context: click.Context, home: Path | None, config_file: Path | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Examine configuration, ports, certificates, keys, disk, clock and listeners.

    Nothing is changed. Exit code 0: no problem (there may be warnings); 1: at least one problem.
    """
    from gateway.cli.examination import Verdict, examine
    from gateway.cli.serve import load_config

    findings = []
    for finding in examine(load_config(home, config_file, settings)):
        findings.append(finding)
        if as_json:
            print_json(msgspec.to_builtins(finding))
            continue
        verdict = click.style(finding.verdict.ljust(8), fg=COLOURS[finding.verdict])
        click.echo(f"{verdict} {finding.check.ljust(14)} {printable(finding.seen)}")
        if finding.what_to_do:
            click.echo(f"{' ' * 24}{click.style(printable(finding.what_to_do), dim=True)}")
    problems = sum(finding.verdict is Verdict.PROBLEM for finding in findings)
    warnings = sum(finding.verdict is Verdict.WARNING for finding in findings)
    if not as_json:
        click.echo(f"\n{problems} problems, {warnings} warnings, {len(findings)} findings")
    if problems:
        context.exit(1)
