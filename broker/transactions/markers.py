"""The control batch that ends a transaction on a partition (Kafka's documentation, "Control Batches"; KIP-98).

key     version (2) = 0, type (2): 0 abort, 1 commit
value   version (2) = 0, epoch of the coordinator (4)
"""

from __future__ import annotations

import struct

import msgspec

from broker.batch import build, read_header
from broker.batch_header import CONTROL, HEADER_BYTES, TRANSACTIONAL, assemble

COORDINATOR_EPOCH = 0  # one node, one coordinator
_KEY = struct.Struct(">hh")
_VALUE = struct.Struct(">hi")


def marker(producer_id: int, epoch: int, *, commit: bool, at_ms: int) -> bytes:
    batch = build(
        [(at_ms, _KEY.pack(0, int(commit)), _VALUE.pack(0, COORDINATOR_EPOCH), ())],
        producer_id=producer_id,
        producer_epoch=epoch,
    )
    header = msgspec.structs.replace(read_header(batch), attributes=TRANSACTIONAL | CONTROL)
    return assemble(header, batch[HEADER_BYTES:])
