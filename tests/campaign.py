"""`make campaign`: the slow proofs, with a dated report under docs/reports.

    python -m tests.campaign [--only simulation,flights,slow,fuzz,rest,kafka,bench,properties] [--fuzz-seconds 60]

Each part is a command of its own that can be run alone; the report holds its last lines and how it ended.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LINES_KEPT = 120


class Part(NamedTuple):
    name: str
    what: str
    command: list[str]
    environment: dict[str, str]


class Outcome(NamedTuple):
    part: Part
    code: int
    seconds: float
    lines: list[str]


def parts(fuzz_seconds: int) -> list[Part]:
    python = sys.executable
    return [
        Part(
            "simulation",
            "1,000 simulated worlds",
            [python, "-m", "tests.simulation.run", *("--runs", "1000", "--processes", "2", "--results", "build/worlds.jsonl")],
            {},
        ),
        Part("flights", "the whole flights table, three kills", [python, "-m", "tests.services.flights", "--kills", "3"], {}),
        Part("slow", "the slow tests: kills, the pages in a browser", [python, "-m", "pytest", "-q", "-m", "slow"], {}),
        Part("fuzz", "every fuzz target", [python, "-m", "tests.fuzz.campaign", "--seconds", str(fuzz_seconds)], {}),
        Part("rest", "schemathesis: all checks, with a token and without", [python, "-m", "tests.conformance.rest"], {}),
        Part(
            "kafka",
            "500 sequences of calls, against Sprawl and a real Apache Kafka",
            [python, "-m", "tests.conformance.kafka_differential", "--sequences", "500"],
            {},
        ),
        Part("bench", "budgets", [python, "bench/run.py", "--save"], {}),
        Part(
            "properties",
            "Hypothesis with many examples",
            [
                python,
                "-m",
                "pytest",
                "-q",
                "-m",
                "not slow",
                "--timeout",
                "1800",
                "tests/broker",
                "tests/security",
                "tests/gateway",
            ],
            {"HYPOTHESIS_PROFILE": "campaign"},
        ),
    ]


def run(part: Part) -> Outcome:
    print(f"== {part.name}: {' '.join(part.command[1:])}", flush=True)
    start = time.monotonic()
    process = subprocess.Popen(
        part.command, cwd=ROOT, env=os.environ | part.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))
    return Outcome(part, process.wait(), time.monotonic() - start, lines)


def report(outcomes: list[Outcome], now: datetime.datetime) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    head = [
        f"# Campaign of {now:%Y-%m-%d %H:%M} UTC",
        "",
        f"At commit {commit}; {os.cpu_count()} CPUs, {platform.machine()}, Linux {platform.release()},",
        f"Python {platform.python_version()}.",
        "",
        "| part | what | ended | seconds |",
        "|---|---|---|---|",
    ]
    rows = [
        f"| {o.part.name} | {o.part.what} | {'green' if o.code == 0 else f'RED (exit {o.code})'} | {o.seconds:.0f} |"
        for o in outcomes
    ]
    bodies = [
        line
        for o in outcomes
        for line in (
            "",
            f"## {o.part.name}",
            "",
            f"    {' '.join(['python', *o.part.command[1:]])}",
            "",
            "```",
            *o.lines[-LINES_KEPT:],
            "```",
        )
    ]
    return "\n".join(head + rows + bodies) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--fuzz-seconds", type=int, default=60)
    chosen = parser.parse_args()
    wanted = {name for name in chosen.only.split(",") if name}
    now = datetime.datetime.now(datetime.UTC)
    named = "".join(f"-{name}" for name in sorted(wanted))
    path = ROOT / "docs" / "reports" / f"{now:%Y-%m-%d}-campaign{named}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for part in parts(chosen.fuzz_seconds):
        if not wanted or part.name in wanted:
            outcomes.append(run(part))
            path.write_text(report(outcomes, now).replace(str(ROOT), "."))  # what is done stays written, whatever comes next
    print(f"report: {path.relative_to(ROOT)}")
    return 1 if any(outcome.code for outcome in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
