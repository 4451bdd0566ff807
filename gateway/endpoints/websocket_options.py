"""What a WebSocket connection may do: every bound with its name (`websocket.<field>` in the configuration), unit and default."""

from __future__ import annotations

import msgspec

from gateway.wire.websocket import Limits


class WebSocketOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A node's settings. Times in milliseconds, sizes in bytes."""

    path: str = "/v1/ws"

    origins: tuple[str, ...] = ()
    """Pages that may connect, as `https://host[:port]`; none listed means pages of this very host only."""

    # What one peer may send.
    message_bytes_max: int = 2 * 1024 * 1024
    auth_message_bytes_max: int = 16 * 1024
    fragments_max: int = 1024
    operations_max: int = 1000
    """Operations in one message (an array)."""
    tags_max: int = 1000
    """Tags in one ack, nack, reject or extend."""
    ref_bytes_max: int = 256
    """A `ref` is kept until its answer, and echoed."""
    control_frames_per_second_max: int = 100
    """Pings and pongs; clients that mean well send one in ten seconds."""

    # What one peer may have under way.
    subscriptions_max: int = 100
    sub_chars_max: int = 256
    publishes_in_flight_max: int = 256
    publish_bytes_in_flight_max: int = 4 * 1024 * 1024

    # What is kept for a peer that reads slowly.
    send_buffer_bytes_max: int = 1024 * 1024
    """Beyond it nothing is written: subscriptions fall behind in the log, replies stop because reading stops."""
    slow_reader_ms: int = 30_000
    """As long as a full send buffer may take to drain."""

    # Deliveries.
    read_bytes_max: int = 256 * 1024
    """Record bytes of one read; bounds how far a write overshoots the send buffer."""
    read_records_max: int = 1000
    frame_bytes_max: int = 512 * 1024
    """JSON bytes of one `records` message, or one record: clients refuse large frames (`websockets`: 1 MiB)."""
    read_wait_ms: int = 10_000
    reads_in_flight_max: int = 16
    """Reads of subscribers that are behind, over all connections of the node."""

    # Deadlines.
    auth_timeout_ms: int = 5_000
    ping_interval_ms: int = 20_000
    ping_timeout_ms: int = 20_000
    close_timeout_ms: int = 5_000
    drain_ms: int = 5_000
    """What publishes under way may take when the node stops."""
    recheck_ms: int = 500
    """How often live credentials are looked at: a revocation takes hold within a second."""

    # Fairness between connections.
    turn_frames_max: int = 256
    """Frames and operations of one connection handled before the others have their turn [about 2 ms of pings]."""

    def wire_limits(self) -> Limits:
        return Limits(
            message_bytes_max=self.message_bytes_max,
            auth_message_bytes_max=self.auth_message_bytes_max,
            fragments_max=self.fragments_max,
        )
