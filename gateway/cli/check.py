"""`sprawl check`: is a running node whole? A record in by every protocol and out by every other, with a verdict for each."""

from __future__ import annotations

import click
import msgspec

from gateway.cli.client import Client
from gateway.cli.connection import Connection
from gateway.cli.display import print_json, print_table
from gateway.cli.options import connection_options, json_option
from gateway.cli.round_trip import RoundTrip, Trip


@click.command()
@json_option
@connection_options
@click.pass_context
def check(context: click.Context, connection: Connection, as_json: bool) -> None:
    """Send a record through a running node, in and out by every protocol.

    Makes a topic for it and deletes that again: the token needs the right to create, publish, read and delete topics named
    sprawl-check-*. Exit code 0: every way passed; 1: one did not.
    """
    trips: list[Trip] = []
    with Client(connection) as client:
        for trip in RoundTrip(client).run():
            trips.append(trip)
            if as_json:
                print_json({**msgspec.to_builtins(trip), "passed": trip.passed})
    if not as_json:
        print_table(
            ("in", "out", "verdict", "ms"),
            [(trip.way_in, trip.way_out or "(published)", trip.problem or "ok", f"{trip.took_ms:.1f}") for trip in trips],
            right=("ms",),
        )
    if not all(trip.passed for trip in trips):
        context.exit(1)
