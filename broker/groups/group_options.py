"""Bounds and waits of consumer groups, named as in the configuration (`groups.*`)."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]
DAY_MS = 86_400_000


class GroupOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Consumer groups of Kafka clients. What Kafka has a setting for is named beside it, and has its default."""

    groups_max: Count = 10_000
    """Groups of the node, those that only keep offsets included; one more is refused."""
    members_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1_000
    """Members of one group (`group.max.size`, which Kafka leaves open); one more is refused."""
    group_id_chars_max: Annotated[int, msgspec.Meta(ge=1, le=1_024)] = 255
    """Characters of a group's name, a member's id and a static instance id."""
    member_bytes_max: Annotated[int, msgspec.Meta(ge=1_024, le=8 * 1024 * 1024)] = 512 * 1024
    """What one member says of itself (its protocols with their metadata), and what it is assigned; larger is refused."""
    members_bytes_max: Count = 64 * 1024 * 1024
    """The same of all members of the node together: all of it is in memory."""
    initial_rebalance_delay_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 3_000
    """How long an empty group waits for further members before its first rebalance (`group.initial.rebalance.delay.ms`)."""
    session_timeout_ms_min: Annotated[int, msgspec.Meta(ge=1, le=DAY_MS)] = 6_000
    """The shortest session timeout that a member may ask for (`group.min.session.timeout.ms`)."""
    session_timeout_ms_max: Annotated[int, msgspec.Meta(ge=1, le=DAY_MS)] = 1_800_000
    """The longest (`group.max.session.timeout.ms`)."""
    rebalance_timeout_ms_max: Annotated[int, msgspec.Meta(ge=1, le=7 * DAY_MS)] = DAY_MS
    """How long a rebalance waits for a member at most, whatever the member asks for."""
    consumer_session_timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=DAY_MS)] = 45_000
    """Session timeout of members of the consumer protocol, KIP-848 (`group.consumer.session.timeout.ms`)."""
    consumer_heartbeat_interval_ms: Annotated[int, msgspec.Meta(ge=1, le=DAY_MS)] = 5_000
    """How often they are told to send heartbeats (`group.consumer.heartbeat.interval.ms`)."""
    consumer_refresh_ms: Annotated[int, msgspec.Meta(ge=0, le=DAY_MS)] = 1_000
    """How often the topics of their subscriptions and patterns are looked at anew, at their heartbeats (Kafka looks at patterns
    every ten minutes: `group.consumer.regex.refresh.interval.ms`)."""
    offset_metadata_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=32 * 1024)] = 4_096
    """Metadata of one committed offset (`offset.metadata.max.bytes`)."""
    offsets_retention_ms: Annotated[int, msgspec.Meta(ge=1, le=10 * 365 * DAY_MS)] = 7 * DAY_MS
    """How long offsets are kept of a group without members (`offsets.retention.minutes`)."""
    expiry_check_ms: Annotated[int, msgspec.Meta(ge=100, le=DAY_MS)] = 600_000
    """How often that is looked after (`offsets.retention.check.interval.ms`)."""
