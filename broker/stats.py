"""What the engine tells of itself: a snapshot, made when asked for."""

from __future__ import annotations

import msgspec


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since start, and sizes now (bytes)."""

    topics: int
    partitions: int
    files: int
    groups: int
    batches_appended: int
    bytes_journaled: int
    append_failures: int
    append_queue_bytes: int
    ring_bytes: int
    file_reads: int
    sealed_in_place: int
    merges: int
    merged_bytes: int
    compactions: int
    key_walk_batches: int
    key_walk_waiting: int
    log_starts_moved: int
    files_swept: int
    bytes_swept: int
    disk_full: int
    disk_full_times: int
    damaged_ranges: int
    next_sequence: int
    free_disk_bytes: int
