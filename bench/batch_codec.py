"""What the record batch codec costs: us per record, batches of 100 records of 200 B, each compression.

    python bench/batch_codec.py [seconds]

Records carry a key, a 36-character message id header and one of ten timestamps; values are JSON-like, so that they compress
about threefold. Each figure is the best of many short rounds, the operations taking turns, so a neighbour's load moves it least.
"""

from __future__ import annotations

import platform
import random
import sys
import time
from collections.abc import Callable

from broker import batch as codec
from broker.compression import Compression
from broker.record import MESSAGE_ID_HEADER, new_message_id

RECORDS = 100
VALUE_BYTES = 200
ROUND_CALLS = 10

BUILD_US_TARGET = 0.6  # uncompressed, one message id header


def reading(rng: random.Random) -> bytes:
    fields = f'{{"device":"sensor-{rng.randrange(1_000)}","temperature":{rng.uniform(15, 30):.3f},"site":"eu-west","note":"'
    return (fields + rng.randbytes(VALUE_BYTES).hex())[: VALUE_BYTES - 2].encode() + b'"}'


def drafts(*headers: tuple[bytes, bytes]) -> list[codec.Draft]:
    rng = random.Random(1)
    return [
        (
            1_700_000_000_000 + n // 10,
            b"eu/%d" % n,
            reading(rng),
            ((MESSAGE_ID_HEADER.encode(), new_message_id().encode()), *headers),
        )
        for n in range(RECORDS)
    ]


def operations(records: list[codec.Draft], compression: Compression) -> dict[str, Callable[[], object]]:
    batch = codec.build(records, compression=compression)
    return {
        "build": lambda: codec.build(records, compression=compression),
        "verify": lambda: codec.verify(batch),
        "keys": lambda: codec.keys(batch),
        "walk_raw": lambda: [0 for _ in codec.walk_raw(batch)],
        "walk": lambda: [0 for _ in codec.walk(batch)],
        "cut": lambda: codec.cut(batch, lambda key: key != b"eu/7"),
    }


def best_us_per_record(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    best = dict.fromkeys(calls, float("inf"))
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(ROUND_CALLS):
                call()
            best[name] = min(best[name], (time.perf_counter() - started) / ROUND_CALLS / RECORDS * 1e6)
    return best


def main(seconds: float) -> None:
    print(f"Python {platform.python_version()}, {platform.machine()}; {RECORDS} records of {VALUE_BYTES} B; us per record")
    names = ("build", "verify", "keys", "walk_raw", "walk", "cut")
    print(f"{'':16}{'bytes':>8}" + "".join(f"{name:>10}" for name in names))
    cases = [(compression.name.lower(), drafts(), compression) for compression in Compression]
    cases.append(("none, 2 headers", drafts((b"content-type", b"application/json")), Compression.NONE))
    for title, records, compression in cases:
        best = best_us_per_record(operations(records, compression), seconds)
        size = len(codec.build(records, compression=compression))
        print(f"{title:16}{size:8}" + "".join(f"{best[name]:10.3f}" for name in names))
        if title == "none":
            verdict = "MET" if best["build"] <= BUILD_US_TARGET else "MISSED"
            print(f"{verdict}: build, uncompressed, {best['build']:.3f} us a record, target {BUILD_US_TARGET}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0)
