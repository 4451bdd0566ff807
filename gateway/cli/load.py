"""`sprawl load`: how much a node takes, and how long it lets callers wait, measured so that stalls show."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import click

from gateway.cli.client import Client
from gateway.cli.connection import Connection
from gateway.cli.display import print_json
from gateway.cli.failures import Refused, Unusable
from gateway.cli.load_generator import Load, Outcome, Plan
from gateway.cli.load_report import facts, markdown
from gateway.cli.load_targets import RestTarget, Target, WebSocketTarget
from gateway.cli.options import FILE, connection_options, json_option

RATE_MAX, SECONDS_MAX, CONNECTIONS_MAX = 100_000.0, 3_600.0, 1_000
RECORDS_MAX, SIZE_MAX, KEYS_MAX = 10_000, 1_000_000, 1_000_000


@click.command()
@click.option("--protocol", type=click.Choice(("rest", "websocket")), default="rest", show_default=True, help="How to publish.")
@click.option("--rate", type=click.FloatRange(0.1, RATE_MAX), default=100.0, show_default=True, help="Requests a second, in all.")
@click.option("--seconds", type=click.FloatRange(0.1, SECONDS_MAX), default=10.0, show_default=True, help="How long.")
@click.option("--records", type=click.IntRange(1, RECORDS_MAX), default=1, show_default=True, help="Records a request.")
@click.option("--size", type=click.IntRange(1, SIZE_MAX), default=200, show_default=True, help="Bytes of a record's value.")
@click.option("--keys", type=click.IntRange(1, KEYS_MAX), default=1_000, show_default=True, help="Different keys.")
@click.option("--connections", type=click.IntRange(1, CONNECTIONS_MAX), default=8, show_default=True, help="Publishing at once.")
@click.option(
    "--subscribers", type=click.IntRange(0, CONNECTIONS_MAX), default=0, show_default=True, help="Reading over WebSocket."
)
@click.option("--topic", help="An existing topic to publish to. [default: one of its own, deleted at the end]")
@click.option("--report", type=FILE, help="Write the report as Markdown to this file.")
@json_option
@connection_options
def load(connection: Connection, topic: str | None, report: Path | None, as_json: bool, **values: float) -> None:
    """Publish at a fixed rate, and show the latency of acknowledgements.

    Open loop: a request is due whether the ones before were answered or not, and its latency counts from when it was due.

    \b
    sprawl load --rate 500 --seconds 30 --subscribers 2
    sprawl load --protocol websocket --rate 200 --records 100 --report load.md
    """
    plan = Plan(**values)  # type: ignore[arg-type]
    with Client(connection) as client:
        node = client.call("GET", "/v1/node")
        name = topic or f"sprawl-load-{secrets.token_hex(6)}"
        if topic is None:
            client.call("POST", "/v1/topics", document={"name": name})
        try:
            outcome = asyncio.run(Load(plan, connection, name, _target(plan, connection, name), _progress(as_json)).run())
        finally:
            if topic is None:
                client.call("DELETE", f"/v1/topics/{name}")
    found = facts(plan, outcome, node)
    text = markdown(plan, outcome, found)
    if report is not None:
        _write(report, text)
    if as_json:
        print_json(found)
    else:
        click.echo(text)
    if not outcome.acknowledged.count:
        raise Refused({"title": "no request was acknowledged", "detail": ", ".join(outcome.refused)})


def _target(plan: Plan, connection: Connection, topic: str) -> Callable[[], Target]:
    if plan.protocol == "websocket":
        return lambda: WebSocketTarget(connection, topic)
    return lambda: RestTarget(connection, quote(topic, safe=""))


def _progress(as_json: bool) -> Callable[[float, Outcome], None]:
    """One line a second on standard error, rewritten where that is a terminal."""
    quiet = as_json or not sys.stderr.isatty()

    def tell(took_s: float, outcome: Outcome) -> None:
        if not quiet:
            p99_ms = outcome.acknowledged.percentile(99) * 1_000
            line = (
                f"\r{took_s:5.0f} s  {outcome.records:>12,} records  p99 {p99_ms:8.1f} ms  {outcome.refused.total():,} refused "
            )
            click.echo(line, err=True, nl=False)

    return tell


def _write(report: Path, text: str) -> None:
    try:
        report.write_text(text)
    except OSError as error:
        raise Unusable(f"the report cannot be written to {report}", str(error.strerror)) from None
