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

    ring_bytes_max: int = 16 * MIB
    """Newest batches kept in clear in memory for readers at the live end, of all partitions together."""

    index_cache_bytes_max: int = 32 * MIB
    """Indexes of sealed files kept in memory."""

    fetch_bytes_max: int = 16 * MIB
    """One read, whatever the reader asks for; a single larger batch is still served whole."""

    read_ahead_bytes_max: int = 32 * MIB
    """Pages read before their readers ask for them, of all readers together; half for readers by offset, half for those in commit
    order. 0: nothing is read ahead."""

    read_parts_max: int = 2
    """Parts that one large read is opened in side by side, on the read lane's threads; 1: one after the other."""

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

    key_walk_after_read_ms: int = 60 * 60 * 1000
    """How long after somebody read a topic by key the batches that Kafka producers send to it are walked for their keys, so that
    a look-up need not open them all."""

    key_walk_interval_ms: int = 1_000
    """How often, meanwhile, batches that came since are looked for."""

    key_walk_bytes_per_s: int = 16 * MIB
    """Rate of that walk, in bytes as stored."""

    key_walk_file_bytes_min: int = 1 * MIB
    """A sealed file with at least this many bytes of batches whose keys nobody knows, of a topic that is read by key, is written
    again at the rate of the merge, to have them in its footer."""

    compaction_offsets_max: int = 2_000_000
    """Offsets of a partition that one compaction sees for the first time, at most, but always those of one file: their keys are
    in memory meanwhile, about 150 bytes each. The rest follows in the next one. Its rate is the merge's."""

    reserve_bytes: int = 64 * MIB
    """Kept back in a file of this size and given to deletions, retention and the log's own files when the disk is full; and when
    no more than as much again is free, records are refused with DiskFull before the disk refuses them. 0: neither."""

    reserve_below_free_bytes: int = 4096 * MIB
    """The reserve is made once less than this is free: a roomy disk needs none. Under a quota, which free space does not show,
    set it above the size of the disk."""

    space_check_ms: int = 1_000
    """How often free space is looked at; while it is short, every `recover_retry_ms`."""

    merge_dead_bytes: int = 16 * MIB
    """A sealed file is rewritten alone when at least this many of its bytes, and at least half, belong to deleted or expired
    records: space comes back though others share the file."""

    sweep_journal_bytes: int = 64 * 1024
    """A journal of which no record is kept goes at once if it has this many bytes; smaller ones, as stops and failures leave
    them, are not worth a snapshot of the state each and go with the next merge."""

    journal_age_max_ms: int = 60 * 60 * 1000
    """A journal file older than this is sealed at the next append, full or not: files are what retention removes."""

    retention_check_ms: int = 5 * 60 * 1000
    """How often topics are looked at for records to let go (Kafka: log.retention.check.interval.ms)."""

    clock_jump_max_ms: int = 5 * 60 * 1000
    """When the wall clock ran ahead by more than this between two such looks, time-based retention waits ..."""

    clock_settle_ms: int = 60 * 60 * 1000
    """... for so long, and says so: a mistaken clock deletes nothing that is put right within that time."""

    state_entries_max: int = 1_000_000
    """Entries of keyed state that live beside the data: idempotency keys, positions of consumers."""

    state_bytes_max: int = 256 * MIB
    """Their keys and values together: all of it is in memory, and in each snapshot."""

    state_space_bytes_max: int = 128 * MIB
    """The same for one kind of them, so that whoever publishes with idempotency keys does not leave consumers without a place."""

    state_key_bytes_max: int = 1024
    """Key of one entry."""

    state_value_bytes_max: int = 64 * 1024
    """Value of one entry."""

    topics_max: int = 10_000
    """Topics of the node."""

    partitions_max: int = 1_000
    """Partitions of one topic."""

    recover_retry_ms: int = 1_000
    """After a failed write or sync: how long until a new journal file is tried again."""
