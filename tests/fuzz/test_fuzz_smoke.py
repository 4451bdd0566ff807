"""Every fuzz target runs, and finds nothing in the first executions of a fixed seed. `tests.fuzz.run` goes on from there."""

from __future__ import annotations

import importlib

import pytest

from tests.fuzz.run import run_target, targets

EXECUTIONS_MAX = 300
SEED = 1


@pytest.mark.parametrize("name", targets())
def test_finds_nothing(name: str) -> None:
    executions, data, trace = run_target(name, 60.0, SEED, executions_max=EXECUTIONS_MAX)
    assert data is None, f"{data!r}\n{trace}"
    assert executions == EXECUTIONS_MAX


@pytest.mark.parametrize("name", targets())
def test_takes_each_sample(name: str) -> None:
    module = importlib.import_module(f"tests.fuzz.{name}")
    for sample in getattr(module, "CORPUS", []):
        module.one_input(sample)
