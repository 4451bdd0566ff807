"""Microseconds of CPU per seal and per open, through `Cipher`, and what the key look-ups around them cost.

    python bench/seal.py

A batch header of 144 bytes is the associated data, as in the log. Best of several rounds: what the code costs, not what else the
machine was doing.
"""

import os
import platform
import time
from collections.abc import Callable

from security.crypto.envelope import Cipher, KeyHasher, keyed_hash64, unwrap_key, wrap_key
from security.crypto.keyring import Epoch

SIZES = (200, 16 * 1024, 64 * 1024)
ASSOCIATED = bytes(144)
ROUNDS = 7
ROUND_MS = 40


def best_us(work: Callable[[], object]) -> float:
    """CPU of one call, in microseconds."""
    calls = 1
    while (spent := _spent_ns(work, calls)) < ROUND_MS * 1e6 / 4:
        calls *= 2
    calls = max(1, int(calls * ROUND_MS * 1e6 / spent))
    return min(_spent_ns(work, calls) for _ in range(ROUNDS)) / calls / 1e3


def _spent_ns(work: Callable[[], object], calls: int) -> int:
    start = time.process_time_ns()
    for _ in range(calls):
        work()
    return time.process_time_ns() - start


def main() -> None:
    key = os.urandom(32)
    cipher = Cipher(key)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores; us of CPU a call, best of {ROUNDS} rounds")
    print(f"{'bytes':>7} {'seal':>8} {'open':>8} {'GB/s seal':>10}")
    for size in SIZES:
        data, epoch = os.urandom(size), Epoch(bytes(16), 1, bytes(60), cipher, 2**32)
        sealed = memoryview(cipher.seal(bytes(12), data, ASSOCIATED))
        seal_us = best_us(lambda data=data, epoch=epoch: cipher.seal(epoch.next_nonce(), data, ASSOCIATED))
        open_us = best_us(lambda sealed=sealed: cipher.open(bytes(12), sealed, ASSOCIATED))
        print(f"{size:>7} {seal_us:>8.2f} {open_us:>8.2f} {size / seal_us / 1e3:>10.2f}")
    wrapped = wrap_key(cipher, key, ASSOCIATED, os.urandom)
    hasher = KeyHasher(key)
    for name, work in {
        "wrap a key": lambda: wrap_key(cipher, key, ASSOCIATED, os.urandom),
        "unwrap a key": lambda: unwrap_key(cipher, wrapped, ASSOCIATED),
        "hash a record key": lambda: keyed_hash64(key, b"devices/eu/4711"),
        "hash it again": lambda: hasher.hash(b"devices/eu/4711"),
    }.items():
        print(f"{name:>20} {best_us(work):>8.2f}")


if __name__ == "__main__":
    main()
