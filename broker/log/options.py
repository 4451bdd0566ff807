"""Bounds and choices of the embedded log."""

from __future__ import annotations

from typing import Literal

import msgspec

MIB = 1024 * 1024


class LogOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the embedded engine; sizes in bytes."""

    durability: Literal["fsync", "os"] = "fsync"
    """`fsync`: acknowledged when on the media. `os`: when handed to the operating system; a power cut may lose the newest."""

    journal_file_bytes: int = 64 * MIB
    """A journal file at least this long is sealed in place and the next one opened."""

    group_bytes_max: int = 8 * MIB
    """One commit group: one write and one sync."""

    append_queue_bytes_max: int = 64 * MIB
    """Batches accepted and not yet durable; beyond it appends are refused with Overloaded."""

    ring_bytes_max: int = 32 * MIB
    """Newest batches kept in clear in memory for readers at the live end."""

    index_cache_bytes_max: int = 32 * MIB
    """Indexes of sealed files kept in memory."""

    fetch_bytes_max: int = 16 * MIB
    """One read, whatever the reader asks for; a single larger batch is still served whole."""

    reads_in_flight_max: int = 64
    """Reads of files at once; later ones wait."""

    merge_files_min: int = 4
    """Sealed files that are merged together, at least."""

    merge_own_bytes: int = 16 * MIB
    """A partition with at least this many bytes in a merge gets a segment of its own."""

    merge_input_bytes_max: int = 256 * MIB
    """Shared files larger than this are not merged again."""

    merge_bytes_per_s: int = 64 * MIB
    """Rate of the background merge."""

    topics_max: int = 10_000
    """Topics of the node."""

    partitions_max: int = 1_000
    """Partitions of one topic."""

    recover_retry_ms: int = 1_000
    """After a failed write or sync: how long until a new journal file is tried again."""
