"""This machine's readings."""

from typing import Any

import psutil
import pytest

from gateway.cli.readings import Machine


def test_every_thing_that_is_measured_has_an_address() -> None:
    readings = {reading.key: reading.value for reading in Machine().read()}
    processors = psutil.cpu_count() or 1
    assert set(readings) == {"cpu", "memory", "disk", "network", *(f"cpu/{number}" for number in range(processors))}
    assert readings["memory"]["used_bytes"] > 0
    assert all(0 <= readings[name]["percent"] <= 100 for name in ("cpu", "memory", "cpu/0"))


def test_rates_are_what_was_counted_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    at = iter([10.0, 12.0])
    monkeypatch.setattr("gateway.cli.readings.time.monotonic", lambda: next(at))
    counted: dict[str, Any] = {"read_bytes": 1000, "write_bytes": 5000}
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: type("Disk", (), counted))
    machine = Machine()
    counted |= {"read_bytes": 1500, "write_bytes": 9000}
    readings = {reading.key: reading.value for reading in machine.read()}
    assert readings["disk"] == {"read_bytes_per_s": 250, "written_bytes_per_s": 2000}


def test_a_machine_without_disks_or_interfaces_has_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    readings = {reading.key: reading.value for reading in Machine().read()}
    assert readings["disk"] == {"read_bytes_per_s": 0, "written_bytes_per_s": 0}
