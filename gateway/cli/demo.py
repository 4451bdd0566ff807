"""`sprawl demo`: this machine's own readings through a real node, and then what a thief of the disk would see of them."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.cli.client import Client
from gateway.cli.connection import HOME_DEFAULT, resolve_connection
from gateway.cli.display import print_json
from gateway.cli.failures import Refused
from gateway.cli.local_node import local_node
from gateway.cli.options import home_option, json_option
from gateway.cli.proof import Proof
from gateway.cli.telemetry import TOPIC, Telemetry

SECONDS_MAX = 3600
CONFLICT = 409


@click.command()
@home_option
@click.option("--seconds", type=click.IntRange(1, SECONDS_MAX), default=10, show_default=True, help="How long to stream.")
@json_option
def demo(home: Path | None, seconds: int, as_json: bool) -> None:
    """Stream this machine's readings, then look for them on the disk.

    Uses the node of --home, or starts one there and stops it again. Readings (psutil: CPU, memory, disk, network) are published
    over REST and arrive over WebSocket; then the demo reads the node's files as anybody with the disk in hand could.
    """
    home = home or HOME_DEFAULT
    with local_node(home) as (profile, started_here):
        connection = resolve_connection(None, None, None, None, None, home)
        click.echo(f"{'started a node' if started_here else 'using the node that runs'} at {connection.url}", err=True)
        with Client(connection) as client:
            _make_topic(client)
            telemetry = Telemetry(client, as_json=as_json)
            telemetry.run(seconds)
            proof = Proof.make(client, home, profile)
    if as_json:
        print_json({**telemetry.facts(), **proof.facts()})
    else:
        telemetry.show()
        proof.show()
    if telemetry.missing:
        raise Refused({"title": f"{len(telemetry.missing)} acknowledged records did not arrive"})
    proof.check()


def _make_topic(client: Client) -> None:
    try:
        client.call("POST", "/v1/topics", document={"name": TOPIC, "partitions": 1})
    except Refused as refused:
        if refused.problem.get("status") != CONFLICT:
            raise
