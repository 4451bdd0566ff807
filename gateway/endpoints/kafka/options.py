"""What Kafka connections are bounded by; the settings `[kafka]` have the same names and say more."""

from __future__ import annotations

import msgspec


class KafkaOptions(msgspec.Struct, frozen=True, kw_only=True):
    node_id: int = 1
    advertised_host: str = ""
    advertised_port: int = 0
    request_bytes_max: int = 100 * 1024 * 1024
    open_request_bytes_max: int = 512 * 1024
    received_bytes_max: int = 256 * 1024 * 1024
    requests_in_flight_max: int = 64
    fetch_bytes_max: int = 16 * 1024 * 1024
    fetch_sessions_max: int = 1_000
    fetch_session_partitions_max: int = 100_000
    idle_ms: int = 600_000
    auth_ms: int = 30_000
    request_pause_ms: int = 30_000
    failed_authentication_ms: int = 100
    throttle_ms_max: int = 30_000
    reauthentication_ms_max: int = 0
