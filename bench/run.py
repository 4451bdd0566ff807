"""`make bench`: every budget of this repository in one run, MET or MISSED, with the settings beside it.

Figures of a shared machine vary; ratios are taken within one run, alternating. A MISSED line is open work, not noise, until shown
to be. Writes the raw results to bench/results/<date>.json when asked with --save.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench.kafka_listener import GOALS

HERE = Path(__file__).parent
QUICK_KAFKA = ["--mib", "32", "--rounds", "1", "--warm-mib", "64"]


class Budget(NamedTuple):
    """`bound` is the limit of `value`; `at_least` says on which side."""

    text: str
    value: Callable[[dict[str, Any]], float]
    bound: float
    at_least: bool
    unit: str


BUDGETS = [
    Budget(
        "append: 64 KiB batches, group commit, sealed, sealing in place and merging included, of raw write + fdatasync",
        lambda r: r["append"]["append_ratio"],
        0.5,
        True,
        "x",
    ),
    Budget("sealing: share of append throughput", lambda r: 100 * r["append"]["sealing_cost"], 10, False, "%"),
    Budget("recovery of one journal of 1 GiB in batches of 64 KiB", lambda r: r["recovery"]["cpu_s"], 3, False, "s CPU"),
    Budget("sealing: share of sequential read throughput", lambda r: 100 * r["sequential_read"]["price"], 10, False, "%"),
    Budget(
        "REST publish, 100 records a request (NDJSON)",
        lambda r: r["rest"]["ndjson_100"]["cpu_us_a_record"],
        4,
        False,
        "us CPU a record",
    ),
    Budget(
        "REST publish, 100 records a request (JSON array)",
        lambda r: r["rest"]["json_100"]["cpu_us_a_record"],
        4,
        False,
        "us CPU a record",
    ),
    Budget("REST publish, one record a request", lambda r: r["rest"]["one"]["cpu_us_a_record"], 100, False, "us CPU"),
    Budget(
        "WebSocket fan-out 1 -> 500, plain, 8 outstanding",
        lambda r: r["websocket"]["plain_burst"]["cpu_us_a_delivery"],
        7,
        False,
        "us CPU a delivery",
    ),
    Budget(
        "the same of gorilla/websocket's (Go, prepared messages, no log)",
        lambda r: r["websocket"]["plain_burst"].get("of_gorilla", math.nan),
        7 / 6.2,
        False,
        "x",
    ),
    Budget(
        "Server-Sent Events fan-out 1 -> 500, plain, 8 outstanding",
        lambda r: r["websocket"]["sse_burst"]["cpu_us_a_delivery"],
        20,
        False,
        "us CPU a delivery",
    ),
    Budget(
        "binary sub-protocol, CPU of a record published, of JSON's",
        lambda r: r["protocols"]["msgpack_publish"]["cpu_us_a_record_of_json"],
        1,
        False,
        "x",
    ),
    Budget(
        "binary sub-protocol, CPU of a record read, of JSON's",
        lambda r: r["protocols"]["msgpack_read"]["cpu_us_a_record_of_json"],
        1,
        False,
        "x",
    ),
    Budget("idle WebSocket connection", lambda r: r["connections"]["websocket"]["kib_a_connection"], 20, False, "KiB RSS"),
    Budget("idle event stream", lambda r: r["connections"]["sse"]["kib_a_connection"], 30, False, "KiB RSS"),
    Budget(
        "slow readers, all of them: RSS beyond the idle connections",
        lambda r: r["connections"]["slow"]["grown_mib"],
        256,
        False,
        "MiB (limits.send_buffers_bytes_max)",
    ),
    Budget("idle node", lambda r: r["rest"]["idle_rss_mib"], 120, False, "MiB RSS"),
]


def of_kafka(case: str, what: str, ratio: Callable[[float, float], float]) -> Callable[[dict[str, Any]], float]:
    return lambda r: ratio(r["kafka_listener"]["sprawl"][case][what], r["kafka_listener"]["kafka"][case][what])


BUDGETS += [
    Budget(f"Kafka listener, {case}: {what} of Apache Kafka's", of_kafka(case, what, ratio), bound, at_least, "x")
    for case, what, ratio, bound, at_least in GOALS
]


def run(script: str, *arguments: str) -> dict[str, Any]:
    print(f"running {script} ...", flush=True)
    done = subprocess.run([sys.executable, str(HERE / script), *arguments], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(budget: Budget, results: dict[str, Any]) -> str:
    value = budget.value(results)
    met = value >= budget.bound if budget.at_least else value <= budget.bound
    sign = ">=" if budget.at_least else "<="
    return f"{'MET   ' if met else 'MISSED'}  {budget.text}: {value:.2f} {budget.unit} (budget {sign} {budget.bound:g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short runs: for trying the benchmark itself, not for figures")
    parser.add_argument("--save", action="store_true")
    chosen = parser.parse_args()
    results = {
        "append": run("append.py", "--mib", "128" if chosen.quick else "1024", "--rounds", "1" if chosen.quick else "3"),
        "recovery": run("recovery.py", "--mib", "128" if chosen.quick else "1024"),
        "sequential_read": run("sequential_read.py", "--mib", "64" if chosen.quick else "512"),
        "cold_reader": run("cold_reader.py", "--gib", "0.125" if chosen.quick else "2"),
        "key_index": run("key_index.py", "--mib", "16" if chosen.quick else "128"),
        "rest": run("rest.py", "--seconds", "1" if chosen.quick else "5"),
        "websocket": run("websocket_fanout.py", "--seconds", "1" if chosen.quick else "3"),
        "protocols": run("websocket_protocols.py", "--seconds", "1" if chosen.quick else "3"),
        "connections": run("connections.py", "--connections", "500" if chosen.quick else "10000"),
        "kafka_listener": run("kafka_listener.py", *(QUICK_KAFKA if chosen.quick else [])),
    }
    results["machine"] = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
    }
    append = results["append"]
    print(f"\n{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    print("durability fsync, TLS 1.3 and AES-256-GCM at rest unless a line says otherwise\n")
    for budget in BUDGETS:
        print(line(budget, results))
    print(
        f"\nraw {append['raw_mib_s']:.0f} MiB/s, sealed {append['sealed_mib_s']:.0f}, without {append['plain_mib_s']:.0f}; "
        f"reading back sealed {append['sealed_read_mib_s']:.0f} MiB/s, without {append['plain_read_mib_s']:.0f} "
        f"(the price of sealing on reads: {100 * (1 - append['sealed_read_mib_s'] / append['plain_read_mib_s']):.0f} %)"
    )
    if chosen.save:
        path = HERE / "results" / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
