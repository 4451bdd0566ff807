"""One fuzz target under libFuzzer, guided by the branches of Sprawl's own code (atheris).

    python -m tests.fuzz.guided fuzz_batch <libFuzzer's arguments: corpus folder, -max_total_time=600, -runs=1000 ...>

`tests.fuzz.campaign` runs all of them; `tests.fuzz.run` is what runs every day and where there is no atheris.
"""

from __future__ import annotations

import importlib
import logging
import sys

import atheris

PACKAGES = ["broker", "gateway", "security"]


def main(arguments: list[str]) -> None:
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=PACKAGES):
        module = importlib.import_module(f"tests.fuzz.{arguments[1]}")
    atheris.Setup([arguments[0], *arguments[2:]], module.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
