"""A few examples of what `tests/conformance/rest.py` does with hundreds: with a token and without, no operation left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.rest import judge

pytestmark = pytest.mark.services

EXAMPLES = 2


@pytest.mark.timeout(600)  # most of it is schemathesis reading the document
@pytest.mark.parametrize("with_token", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["with a token", "as a stranger"])
def test_the_document_is_true(tmp_path: Path, with_token: bool) -> None:
    found = judge(tmp_path, examples=EXAMPLES, seed=1, with_token=with_token, phases="fuzzing")
    assert found.clean, found.report
