"""Where a REST publish spends the event loop's time: a node in this process under cProfile, its client in another.

    python bench/rest_profile.py [--body ndjson_100|json_100|one] [--lines 25]

The profiler itself about doubles what Python functions cost and leaves C code as it is: read shares and call counts, not times.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import logging
import pstats
import sys
import tempfile
from pathlib import Path

import uvloop
from rest import bodies, drive, request

from gateway.app import Node
from gateway.cli.profile import load_profile
from gateway.cli.welcome import Welcome
from gateway.config import load

WARM_UP_SECONDS = 1.5
MEASURED_SECONDS = 2.0


class Remote:
    """What `drive` wants to know of a node."""

    def __init__(self, home: Path) -> None:
        profile = load_profile(home)
        assert profile is not None
        assert profile.token is not None
        self.url, self.ca, self.token = profile.url, profile.ca, profile.token


def client(home: Path, body: str) -> None:
    node = Remote(home)
    content, content_type, _ = bodies()[body]
    seconds = WARM_UP_SECONDS + MEASURED_SECONDS + 1
    uvloop.run(drive(node, request(node.token, content, content_type), seconds))  # type: ignore[arg-type]


async def profile(home: Path, body: str) -> tuple[cProfile.Profile, float]:
    config = load(None, {}, {"node.home": str(home), "listeners.http.port": 0, "listeners.kafka.port": 0})
    node = Node(config)
    await node.start()
    Welcome.of(node, config)
    command = [sys.executable, __file__, "--client", str(home), "--body", body]
    process = await asyncio.create_subprocess_exec(*command)
    while "bench" not in node.engine.topics():  # the client takes its time to start where the machine is busy
        if process.returncode is not None:
            raise SystemExit("the client ended before it had published anything")
        await asyncio.sleep(0.05)
    await asyncio.sleep(WARM_UP_SECONDS)
    before = appended(node)
    profiler = cProfile.Profile()
    profiler.enable()
    await asyncio.sleep(MEASURED_SECONDS)
    profiler.disable()
    requests = (appended(node) - before) / (bodies()[body][2])
    await process.wait()
    await node.stop()
    return profiler, requests


def appended(node: Node) -> int:
    return sum(offsets.high_watermark for offsets in node.engine.offsets("bench"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--body", choices=sorted(bodies()), default="ndjson_100")
    parser.add_argument("--lines", type=int, default=25)
    parser.add_argument("--client", type=Path)
    chosen = parser.parse_args()
    if chosen.client:
        client(chosen.client, chosen.body)
        return
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="sprawl-bench-") as folder:
        profiler, requests = uvloop.run(profile(Path(folder) / "home", chosen.body))
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    whole = sum(row[2] for row in stats.values())
    calls = sum(row[1] for row in stats.values())
    print(f"{chosen.body}: {requests:.0f} requests, {calls / requests:.0f} function calls a request")
    print(f"{'share':>6} {'calls':>7}  function (own time; calls a request)")
    for (file, _, name), row in sorted(stats.items(), key=lambda item: -item[1][2])[: chosen.lines]:
        place = "/".join(Path(file).parts[-3:]) if "/" in file else file
        print(f"{100 * row[2] / whole:5.1f}% {row[1] / requests:7.1f}  {name} ({place})")


if __name__ == "__main__":
    main()
