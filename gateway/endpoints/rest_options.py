"""The bounds of the HTTP surface, named as in the configuration (`rest.*`, `sse.*`)."""

from __future__ import annotations

import msgspec


class RestOptions(msgspec.Struct, frozen=True, kw_only=True):
    body_bytes_max: int = 8 * 1024 * 1024
    """A request's body; more is refused with 413."""
    bodies_bytes_max: int = 256 * 1024 * 1024
    """Bodies and large answers of all requests under way together; beyond it callers are told to retry."""
    records_max: int = 10_000
    """Records of one publish request, and of one page read."""
    records_default: int = 1_000
    """Records of a page where the reader names no limit."""
    response_bytes_max: int = 8 * 1024 * 1024
    """Bytes of keys and values in one page."""
    response_bytes_default: int = 1024 * 1024
    """The same where the reader names no bytes_max."""
    wait_ms_max: int = 60_000
    """The longest long-poll."""
    waits_max: int = 10_000
    """Long-polls under way at once."""
    compression_ratio_max: int = 200
    """How much a compressed body may grow, beyond its first 64 KiB; more is refused with 413. (JSON grows 5 to 20 times.)"""
    compress_bytes_min: int = 16 * 1024
    """Answers from this size on are compressed for callers that accept it."""
    origins: tuple[str, ...] = ()
    """Origins whose pages may call, as `https://host[:port]`; none listed means pages of this very host only."""


class SseOptions(msgspec.Struct, frozen=True, kw_only=True):
    heartbeat_ms: int = 15_000
    """A comment and the position are sent after this idle time."""
    lifetime_ms: int = 0
    """A stream ends after this time, and browsers go on by Last-Event-ID; 0: never."""
    streams_max: int = 1_000
    """Event streams open at once."""
    buffer_bytes_max: int = 256 * 1024
    """Bytes of keys and values taken from the log at a time, and only when all that was written has left."""
    records_max: int = 1_000
    """Records taken at a time."""
    retry_ms: int = 1_000
    """What the stream tells browsers to wait before they connect again."""
