"""Runs every fuzz target for a while: mutated corpora, a seed, executions counted.

    python -m tests.fuzz.run [--seconds 60] [--seed 1] [--only fuzz_batch]

A target is a module `fuzz_*.py` here with `one_input(data: bytes)`, which raises when something that must not happen happens, and
optionally `CORPUS: list[bytes]` to start from. A failing input is written beside the report and named.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

INPUT_BYTES_MAX = 16_384
CORPUS_MAX = 512


def targets() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("fuzz_*.py"))


def mutate(chance: random.Random, corpus: list[bytes]) -> bytes:
    """One to eight edits of a corpus entry: flip, insert, delete, repeat, splice, overwrite with interesting numbers."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, 8)):
        at = chance.randint(0, len(data)) if data else 0
        match chance.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 16)))
            case 2:
                del data[at : at + chance.choice((1, 2, 8, 64))]
            case 3:
                data[at:at] = data[at : at + chance.choice((4, 32, 256))]
            case 4:
                other = chance.choice(corpus)
                cut = chance.randint(0, len(other)) if other else 0
                data[at:] = other[cut:]
            case _:
                size = chance.choice((1, 2, 4, 8))
                number = chance.choice(
                    (0, 1, 0x7F, 0x80, 0xFF, (1 << (8 * size - 1)) - 1, 1 << (8 * size - 1), (1 << (8 * size)) - 1)
                )
                data[at : at + size] = (number % (1 << (8 * size))).to_bytes(size, chance.choice(("big", "little")))
    return bytes(data[:INPUT_BYTES_MAX])


def run_target(name: str, seconds: float, seed: int, executions_max: int | None = None) -> tuple[int, bytes | None, str]:
    """Executions, the failing input if any, and its traceback."""
    module: ModuleType = importlib.import_module(f"tests.fuzz.{name}")
    one_input: Callable[[bytes], None] = module.one_input
    chance = random.Random(f"{name}/{seed}")
    corpus: list[bytes] = [*getattr(module, "CORPUS", []), b"", bytes(64), chance.randbytes(256)]
    until = time.monotonic() + seconds
    executions = 0
    while time.monotonic() < until and (executions_max is None or executions < executions_max):
        data = corpus[executions] if executions < len(corpus) else mutate(chance, corpus)
        executions += 1
        try:
            one_input(data)
        except Exception:
            return executions, data, traceback.format_exc()
        if executions % 64 == 0 and len(corpus) < CORPUS_MAX:
            corpus.append(data)
    return executions, None, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    failed = 0
    for name in targets():
        if chosen.only and name != chosen.only:
            continue
        executions, data, trace = run_target(name, chosen.seconds, chosen.seed)
        ended = "clean" if data is None else "FAILED"
        print(f"{name}: {executions} executions in {chosen.seconds:.0f} s, seed {chosen.seed}: {ended}")
        if data is not None:
            failed += 1
            path = Path(f"{name}-{hashlib.sha256(data).hexdigest()[:12]}.input")
            path.write_bytes(data)
            print(f"{trace}\ninput kept in {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
