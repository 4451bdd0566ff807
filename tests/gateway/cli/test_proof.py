"""What the demo concludes from what it found; `test_demo.py` has the whole of it on a real node."""

from pathlib import Path
from typing import Any

import pytest

from broker.log.layout import BatchHeader
from gateway.cli.evidence import SealedBatch, Search, disguises
from gateway.cli.failures import Refused
from gateway.cli.proof import CONTROL, Proof

MARKER = "sprawl-demo-0123456789abcdef01234567"
HEADER = BatchHeader(b"SPB1", 1, 1, 16, 200, 1, bytes(16), 0, 7, bytes(12), 0, 42, 3, 0, 0, 1, bytes(16))


def proof(**found: list[str]) -> Proof:
    places: dict[str, Any] = {**dict.fromkeys(disguises(MARKER), ()), CONTROL: ["journal/1 at byte 0"], **found}
    sealed = SealedBatch(Path("data/journal/1.journal"), 0, HEADER, bytes(200))
    return Proof(MARKER, {"value": MARKER}, sealed, Search(3, 1000, {name: list(listed) for name, listed in places.items()}))


def test_nothing_in_clear_and_the_control_found_is_a_pass(capsys: pytest.CaptureFixture[str]) -> None:
    proof().check()
    proof().show()
    shown = capsys.readouterr().out
    assert "found nowhere" in shown
    assert "found in 1 files" in shown


@pytest.mark.parametrize("form", disguises(MARKER))
def test_the_marker_in_any_form_is_a_failure_that_names_the_place(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    failing = proof(**{form: ["view/000004.log at byte 17"]})
    with pytest.raises(Refused) as refusal:
        failing.check()
    assert f"{form}: view/000004.log at byte 17" in refusal.value.detail
    failing.show()
    assert "FOUND" in capsys.readouterr().out
    assert failing.facts()["marker_in_clear"] == [f"{form}: view/000004.log at byte 17"]


def test_a_search_that_missed_its_control_proves_nothing() -> None:
    with pytest.raises(Refused, match="proves nothing"):
        proof(**{CONTROL: []}).check()
