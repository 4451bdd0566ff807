"""Looks at a node's folder from outside, with no key: where a record lies, and where a text lies in clear.

It reads the same bytes that a thief of the disk would, by the clear headers that docs/decisions/0001 lays out.
"""

from __future__ import annotations

import base64
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from broker.log.layout import BATCH_HEADER_BYTES, BATCH_MAGIC, BatchHeader, parse_batch_header

CHUNK_BYTES = 4 * 1024 * 1024
NEEDLE_BYTES_MAX = 1024
HEX_ROW_BYTES = 16


class SealedBatch(NamedTuple):
    """A batch as it lies on the disk: `data` is header, key hashes, ciphertext, tag."""

    path: Path
    position: int
    header: BatchHeader
    data: bytes


@dataclass(slots=True)
class Search:
    """`found`: needle's name -> a place for each file that holds it, in words."""

    files: int = 0
    bytes: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, other: Search) -> None:
        self.files += other.files
        self.bytes += other.bytes
        for name, places in other.found.items():
            self.found[name] += places


def find_batch(data: Path, topic_id: bytes, partition: int, offset: int) -> SealedBatch | None:
    """The newest sealed batch in the data folder that holds this offset."""
    files = [*data.glob("journal/*.journal"), *data.glob("segments/*.segment")]
    for path in sorted(files, key=lambda path: path.name, reverse=True):
        for batch in _batches(path):
            header = batch.header
            if (header.topic_id, header.partition) == (topic_id, partition) and header.base_offset <= offset < header.next_offset:
                return batch
    return None


def search(folder: Path, needles: Mapping[str, bytes]) -> Search:
    """Every byte of every file below `folder`. Needles have at most NEEDLE_BYTES_MAX bytes."""
    if any(not 0 < len(needle) <= NEEDLE_BYTES_MAX for needle in needles.values()):
        raise ValueError(f"needles have 1 to {NEEDLE_BYTES_MAX} bytes")
    result = Search(found={name: [] for name in needles})
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        try:
            _search_file(path, str(path.relative_to(folder)), needles, result)
        except FileNotFoundError:  # a running node merges and removes files meanwhile; what it wrote instead is searched too
            continue
    return result


def _search_file(path: Path, name: str, needles: Mapping[str, bytes], result: Search) -> None:
    """The first place of each needle; chunks overlap, so that none hides on a border."""
    missing, tail, size = dict(needles), b"", 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            window, start = tail + chunk, size - len(tail)
            for needle_name, needle in list(missing.items()):
                if (at := window.find(needle)) >= 0:
                    result.found[needle_name].append(f"{name} at byte {start + at}")
                    del missing[needle_name]
            size += len(chunk)
            tail = window[-NEEDLE_BYTES_MAX:]
    result.files += 1
    result.bytes += size


def disguises(text: str) -> dict[str, bytes]:
    """A text as it may lie about without being sealed: as it is, in hex, in base64 (three alignments), in UTF-16."""
    raw = text.encode()
    forms = {"UTF-8": raw, "hex": raw.hex().encode(), "UTF-16": text.encode("utf-16-le")}
    for shift in range(3):
        # The first and last characters depend on the neighbours; what is between them is the same wherever the text lies.
        encoded = base64.b64encode(bytes(shift) + raw)
        forms[f"base64 +{shift}"] = encoded[4 if shift else 0 : -4]
    return forms


def hex_rows(data: bytes, rows_max: int) -> Iterator[str]:
    """As `hexdump -C` prints them: position, bytes, and the printable ones as text."""
    for position in range(0, min(len(data), rows_max * HEX_ROW_BYTES), HEX_ROW_BYTES):
        row = data[position : position + HEX_ROW_BYTES]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{position:08x}  {row[:8].hex(' '):23}  {row[8:].hex(' '):23}  |{text}|"


def _batches(path: Path) -> Iterator[SealedBatch]:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.find(BATCH_MAGIC)
            while at >= 0:
                header = parse_batch_header(content[at : at + BATCH_HEADER_BYTES], 0)
                if header is not None:
                    yield SealedBatch(path, at, header, content[at : at + header.sealed_bytes])
                at = content.find(BATCH_MAGIC, at + len(BATCH_MAGIC))
