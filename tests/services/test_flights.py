"""A slice of the flights, with one kill; the whole table with three is the campaign's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.services.flights import fly, lines


@pytest.mark.services
@pytest.mark.timeout(180)
async def test_flights_survive_a_kill(tmp_path: Path) -> None:
    report = await fly(tmp_path / "home", rows=6_000, kills=1)
    assert report.problems == []
    assert report.acknowledged == report.rows == 6_000
    assert report.kills == 1


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(1800)
async def test_every_flight_survives_three_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = await fly(tmp_path / "home", rows=None, kills=3)
    with capsys.disabled():
        print("\n" + "\n".join(lines(report)))
    assert report.problems == []
    assert report.acknowledged == report.rows == 336_776
