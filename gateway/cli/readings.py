"""What this machine says about itself right now (psutil), as records: one address for each thing that is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psutil


class Reading(NamedTuple):
    """`key` is the part of the address after the topic; rates are per second since the reading before."""

    key: str
    value: dict[str, Any]


class Machine:
    """Counters of disk and network only grow, so the first reading has rates of zero."""

    def __init__(self) -> None:
        psutil.cpu_percent(percpu=True)  # its first answer means nothing: psutil needs a moment to compare with
        self._before = _counters()

    def read(self) -> list[Reading]:
        return [*self._cpu(), self._memory(), *self._rates()]

    def _cpu(self) -> Iterator[Reading]:
        each = psutil.cpu_percent(percpu=True)
        yield Reading("cpu", {"percent": round(sum(each) / max(1, len(each)), 1), "load_1m": round(psutil.getloadavg()[0], 2)})
        for number, percent in enumerate(each):
            yield Reading(f"cpu/{number}", {"percent": percent})

    def _memory(self) -> Reading:
        memory = psutil.virtual_memory()
        return Reading("memory", {"percent": memory.percent, "used_bytes": memory.used, "available_bytes": memory.available})

    def _rates(self) -> Iterator[Reading]:
        now = _counters()
        elapsed_s = max(1e-3, now["at"] - self._before["at"])
        rates = {name: round((now[name] - self._before[name]) / elapsed_s) for name in now if name != "at"}
        self._before = now
        yield Reading("disk", {name: rates[name] for name in ("read_bytes_per_s", "written_bytes_per_s")})
        yield Reading("network", {name: rates[name] for name in ("received_bytes_per_s", "sent_bytes_per_s")})


def _counters() -> dict[str, float]:
    """Zeros where there is no disk or interface to count (some containers): psutil answers None, which its stubs leave out."""
    disk: Any = psutil.disk_io_counters()
    network: Any = psutil.net_io_counters()
    return {
        "at": time.monotonic(),
        "read_bytes_per_s": disk.read_bytes if disk else 0,
        "written_bytes_per_s": disk.write_bytes if disk else 0,
        "received_bytes_per_s": network.bytes_recv if network else 0,
        "sent_bytes_per_s": network.bytes_sent if network else 0,
    }
