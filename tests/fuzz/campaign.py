"""Every fuzz target for so many seconds under libFuzzer, several at once; executions and coverage counted.

    python -m tests.fuzz.campaign [--seconds 600] [--processes 2] [--only fuzz_batch,fuzz_query] [--folder build/fuzz]

The folder keeps what each target has learnt (its corpus) and for how long it has run: a campaign that was stopped goes on, a
target that has had its seconds is not run again, and a larger `--seconds` adds to what was done. What fails a target is kept in
its folder as `crash-*`; `python -m tests.fuzz.guided fuzz_x <that file>` runs it again.

Coverage is counted apart, by running the corpus once more: the lines of functions in the modules that the target itself imports.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzz.run import INPUT_BYTES_MAX, targets

ROOT = Path(__file__).parents[2]
SLICE_SECONDS = 60
"""A target runs in pieces of this length: what a stop loses at most."""
ONE_INPUT_SECONDS = 20
RSS_MB_MAX = 2048
CORPUS_READ_MAX = 5_000
CARRIERS = re.compile(
    r"errors$|^gateway\.pipeline$|^gateway\.endpoints\.exchange$|^broker\.record$|^broker\.engine\.base$|options$"
)
"""Modules that a target imports for what they pass on, not for what they parse."""


@dataclass
class Progress:
    """What a target has done so far."""

    name: str
    executions: int = 0
    seconds: float = 0.0
    edges: int = 0
    corpus: int = 0
    lines_hit: int = 0
    lines: int = 0
    modules: list[str] = field(default_factory=list)
    failure: str = ""

    def row(self) -> str:
        share = f"{self.lines_hit} of {self.lines} ({100 * self.lines_hit // max(1, self.lines)} %)"
        ended = "clean" if not self.failure else f"FAILED: {self.failure}"
        return f"| {self.name} | {self.executions:,} | {self.seconds:.0f} | {self.edges} | {self.corpus} | {share} | {ended} |"


class Campaign:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, seconds: float) -> Progress:
        """Until the target has had `seconds` in all, or failed."""
        progress = self.load(name)
        self._plant(name)
        while progress.seconds < seconds and not progress.failure:
            self._slice(progress, min(SLICE_SECONDS, seconds - progress.seconds))
            self._save(progress)
        self._count_lines(progress)
        self._save(progress)
        print(progress.row(), flush=True)
        return progress

    def load(self, name: str) -> Progress:
        path = self._state(name)
        return Progress(**json.loads(path.read_text())) if path.exists() else Progress(name)

    def _slice(self, progress: Progress, seconds: float) -> None:
        """One run of libFuzzer; exit code 0 when the time was up."""
        began = time.monotonic()
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.guided", progress.name, str(self._corpus(progress.name))),
                *(f"-max_total_time={max(1, round(seconds))}", f"-max_len={INPUT_BYTES_MAX}", f"-timeout={ONE_INPUT_SECONDS}"),
                *(f"-rss_limit_mb={RSS_MB_MAX}", f"-artifact_prefix={self._target(progress.name)}/", "-print_final_stats=1"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
        )
        said = ended.stderr + ended.stdout
        progress.seconds += time.monotonic() - began
        progress.executions += _last(r"stat::number_of_executed_units:\s*(\d+)", said)
        progress.edges = max(progress.edges, _last(r"cov: (\d+)", said))
        progress.corpus = len(list(self._corpus(progress.name).iterdir()))
        if ended.returncode:
            (self._target(progress.name) / "failure.txt").write_text(said[-20_000:])
            progress.failure = f"exit {ended.returncode}, see {self._target(progress.name) / 'failure.txt'}"

    def _plant(self, name: str) -> None:
        """The target's own samples, and what the everyday runner would begin with."""
        corpus = self._corpus(name)
        corpus.mkdir(parents=True, exist_ok=True)
        samples = getattr(importlib.import_module(f"tests.fuzz.{name}"), "CORPUS", [])
        for number, sample in enumerate([*samples, bytes(64)]):
            (corpus / f"sample-{number:03}").write_bytes(sample)

    def _count_lines(self, progress: Progress) -> None:
        counted = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.campaign", "--count", progress.name, "--folder", str(self._folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if counted.returncode == 0:
            facts = json.loads(counted.stdout.splitlines()[-1])
            progress.lines_hit, progress.lines, progress.modules = facts["hit"], facts["lines"], facts["modules"]

    def count(self, name: str) -> dict[str, Any]:
        modules = [importlib.import_module(module) for module in about(name)]
        known = {
            (module.__file__, line) for module in modules if module.__file__ for line in function_lines(Path(module.__file__))
        }
        inputs = sorted(self._corpus(name).iterdir())[:CORPUS_READ_MAX]
        hit = lines_run(name, {file for file, _ in known if file}, [path.read_bytes() for path in inputs])
        return {"hit": len(hit & known), "lines": len(known), "modules": about(name)}

    def _save(self, progress: Progress) -> None:
        self._state(progress.name).write_text(json.dumps(asdict(progress)))

    def _target(self, name: str) -> Path:
        return self._folder / name

    def _corpus(self, name: str) -> Path:
        return self._folder / name / "corpus"

    def _state(self, name: str) -> Path:
        return self._folder / name / "progress.json"


def _last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def about(name: str) -> list[str]:
    """Sprawl's modules that a target imports by itself: what it is about."""
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text())
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    named = {f"{node.module}.{one.name}" for node in imported for one in node.names} | {str(node.module) for node in imported}
    ours = {module for module in named if module.split(".")[0] in ("broker", "gateway", "security") and _is_file(module)}
    return sorted(module for module in ours if not CARRIERS.search(module))


def _is_file(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()


def function_lines(path: Path) -> Iterator[int]:
    """Lines that run when a function of the file is called, not when it is imported."""
    for code in _functions(compile(path.read_text(), str(path), "exec")):
        lines = {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno}
        yield from lines


def _functions(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            is_class = "__qualname__" in constant.co_names and "__module__" in constant.co_names
            if not is_class:
                yield constant
            yield from _functions(constant)


def lines_run(name: str, files: set[str], inputs: list[bytes]) -> set[tuple[str | None, int]]:
    """Which lines of these files run for these inputs."""
    module = importlib.import_module(f"tests.fuzz.{name}")
    hit: set[tuple[str | None, int]] = set()

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        return step if frame.f_code.co_filename in files else None

    def step(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            hit.add((frame.f_code.co_filename, frame.f_lineno))
        return step

    logging.disable(logging.CRITICAL)
    sys.settrace(enter)
    try:
        for data in inputs:
            module.one_input(data)
    except Exception as failure:  # a failing input is reported by the run that found it
        print(f"{name}: {failure!r:.200}", file=sys.stderr)
    finally:
        sys.settrace(None)
    return hit


def report(done: list[Progress]) -> str:
    head = [
        "| target | executions | seconds | edges | corpus | lines of its modules | ended |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [progress.row() for progress in sorted(done, key=lambda progress: progress.name)]
    total = f"{len(done)} targets, {sum(p.executions for p in done):,} executions, {sum(p.seconds for p in done):.0f} s"
    return "\n".join([*head, *rows, "", total, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="for each target, in all")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="targets, by commas")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--report", type=Path, help="where the table goes as well")
    parser.add_argument("--count", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    campaign = Campaign(chosen.folder)
    if chosen.count:
        print(json.dumps(campaign.count(chosen.count)))
        return 0
    names = [name for name in targets() if not chosen.only or name in chosen.only.split(",")]
    with ThreadPoolExecutor(chosen.processes) as pool:
        done = list(pool.map(lambda name: campaign.run(name, chosen.seconds), names))
    text = report(done)
    print(text)
    if chosen.report:
        chosen.report.write_text(text)
    return 1 if any(progress.failure for progress in done) else 0


if __name__ == "__main__":
    raise SystemExit(main())
