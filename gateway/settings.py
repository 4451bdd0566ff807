"""The tables of the configuration file, each setting with its unit, its default and what it bounds.

Names of sizes end in `_bytes` or `_bytes_max`, of waits in `_ms`. What the user says is here; the parts of the node have options
of their own, made of it in `gateway/app.py`. The table `[log]` is the engine's own: `broker/log/options.py`.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import force_setattr

Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
# A day: longer waits are mistyped units.
Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=86_400_000)]
Bytes = Annotated[int, msgspec.Meta(ge=1)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=1e15)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class NodeSection(Section, frozen=True, kw_only=True):
    """Where the node lives."""

    home: str = ".sprawl"
    """Folder of everything below; made with mode 0700 at the first start."""
    data: str = ""
    """Folder of the encrypted log; default `<home>/data`."""
    keys: str = ""
    """Folder of the key-encryption keys; default `<home>/keys`. Never inside the data folder: a copy of that opens nothing."""
    certs: str = ""
    """Folder of the development CA and the server certificate; default `<home>/certs`."""
    tokens: str = ""
    """File of the hashed access tokens; default `<home>/tokens.json`."""
    users: str = ""
    """File of the users with passwords, kept as SCRAM keeps them; default `<home>/users.json`."""
    audit: str = ""
    """File of the audit trail, JSON lines, mode 0600; default `<home>/audit.jsonl`."""

    def __post_init__(self) -> None:
        defaults = {
            "data": "data",
            "keys": "keys",
            "certs": "certs",
            "tokens": "tokens.json",
            "users": "users.json",
            "audit": "audit.jsonl",
        }
        for name, default in defaults.items():
            if not getattr(self, name):
                force_setattr(self, name, str(Path(self.home) / default))
        data, keys = Path(self.data).resolve(), Path(self.keys).resolve()
        if keys.is_relative_to(data):
            raise ValueError(f"keys: {self.keys} lies inside the data folder {self.data}; a copy of the data would hold its keys")


class LoggingSection(Section, frozen=True, kw_only=True):
    """What the node says about itself, as JSON lines."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important level that is written."""
    file: str = ""
    """File the log goes to, made with mode 0600; default standard error."""
    queue_lines_max: Count = 10_000
    """Lines waiting for a slow terminal or disk; beyond it lines are dropped and counted."""
    audit_queue_lines_max: Count = 10_000
    """Audit lines waiting for a slow disk; they are never dropped: beyond it what would be audited is refused with 503."""


class BrokerSection(Section, frozen=True, kw_only=True):
    """Topics and records, whatever the engine."""

    auto_create: bool = True
    """Whether publishing to a topic that is not there makes it, for those who may create topics."""
    partitions_default: Count = 4
    """Partitions of topics made so."""
    record_bytes_max: Bytes = 1024 * 1024
    """One record: key, value and headers."""


class PipelineSection(Section, frozen=True, kw_only=True):
    """What may be under way, over all protocols."""

    record_headers_max: Count = 100
    """Headers of one record."""
    batch_records_max: Count = 250_000
    """Records of one batch of a Kafka producer; more is refused with MESSAGE_TOO_LARGE. Opening a batch takes time by their
    number, and a few compressed bytes may hold millions."""
    publishes_max: Count = 4_096
    """Publish operations waiting for the log; one more is told to retry."""
    feeds_max: Count = 10_000
    """Live readers; one more is told to retry."""


class Socket(Section, frozen=True, kw_only=True):
    """One listening socket, whatever is spoken there."""

    host: str = "127.0.0.1"
    """Address to bind, an IP address or `localhost`."""
    port: Port = 8443
    """TCP port; 0 takes a free one."""
    tls: Literal["server", "mutual-optional", "mutual"] = "server"
    """Whether clients are asked for a certificate: never, asked, or required."""
    plain: bool = False
    """No TLS. On loopback only."""
    anonymous: bool = False
    """Callers without credentials become the principal `anonymous`, who has no rights until bound to a role. On loopback only."""

    def __post_init__(self) -> None:
        if self.plain and self.tls != "server":
            raise ValueError(f'plain = true contradicts tls = "{self.tls}": without TLS no client certificate is seen')
        exposed = [name for name in ("plain", "anonymous") if getattr(self, name)]
        if exposed and not is_loopback(self.host):
            raise ValueError(
                f"{' and '.join(exposed)} may be set on loopback only, and {self.host!r} is reachable from other machines: "
                "bind 127.0.0.1 or ::1, or take the setting away"
            )


class Listener(Socket, frozen=True, kw_only=True):
    """The socket of HTTP."""

    hosts: tuple[str, ...] = ()
    """Names that a plain or anonymous listener may be asked by, besides `localhost` and loopback addresses; no others."""


class KafkaListener(Socket, frozen=True, kw_only=True):
    """The socket of Kafka clients."""

    port: Port = 9092
    """TCP port; 0 takes a free one."""
    enabled: bool = True
    """Whether Kafka clients are served at all."""


def is_loopback(host: str) -> bool:
    """By name or number; whether `localhost` really resolved there is checked again on the bound socket."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class ListenersSection(Section, frozen=True, kw_only=True):
    """Where the node listens, a table per protocol."""

    http: Listener = Listener()
    """REST, Server-Sent Events and WebSocket."""
    kafka: KafkaListener = KafkaListener()
    """Kafka clients."""


class TlsSection(Section, frozen=True, kw_only=True):
    """Certificates. By default those of the development CA in `node.certs`, made at the first start."""

    certificate: str = ""
    """PEM file of the server certificate and its intermediates."""
    key: str = ""
    """PEM file of its key, mode 0600, unencrypted."""
    client_ca: str = ""
    """PEM file of the CAs whose client certificates are believed."""
    poll_ms: Milliseconds = 1_000
    """How often these files are looked at; a changed and sound certificate serves the next connection."""

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together: give both, or neither to use the development CA's")


class RestSection(Section, frozen=True, kw_only=True):
    """Requests over HTTP."""

    body_bytes_max: Bytes = 8 * 1024 * 1024
    """A request's body; more is refused with 413."""
    bodies_bytes_max: Bytes = 256 * 1024 * 1024
    """Bodies and large answers of all requests under way together; beyond it callers are told to retry."""
    records_max: Count = 10_000
    """Records of one publish request, and of one page read."""
    records_default: Count = 1_000
    """Records of a page where the reader names no limit."""
    response_bytes_max: Bytes = 8 * 1024 * 1024
    """Bytes of keys and values in one page."""
    response_bytes_default: Bytes = 1024 * 1024
    """The same where the reader names no bytes_max."""
    wait_ms_max: Milliseconds = 60_000
    """The longest long-poll."""
    waits_max: Count = 10_000
    """Long-polls under way at once."""
    compression_ratio_max: Count = 200
    """How much a compressed body may grow, beyond its first 64 KiB; more is refused with 413. (JSON grows 5 to 20 times.)"""
    compress_bytes_min: Bytes = 16 * 1024
    """Answers from this size on are compressed for callers that accept it."""
    origins: tuple[str, ...] = ()
    """Origins whose pages may call, as `https://host[:port]`; none listed means pages of this very host only."""


class SseSection(Section, frozen=True, kw_only=True):
    """Server-Sent Events."""

    heartbeat_ms: Milliseconds = 15_000
    """A comment and the position are sent after this idle time."""
    lifetime_ms: Annotated[int, msgspec.Meta(ge=0, le=86_400_000)] = 0
    """A stream ends after this time, and browsers go on by Last-Event-ID: for proxies that let no answer last. 0: never."""
    streams_max: Count = 1_000
    """Event streams open at once."""
    buffer_bytes_max: Bytes = 256 * 1024
    """Bytes of keys and values taken from the log at a time, and only when all that was written has left."""
    records_max: Count = 1_000
    """Records taken at a time."""
    retry_ms: Milliseconds = 1_000
    """What the stream tells browsers to wait before they connect again."""


class WebSocketSection(Section, frozen=True, kw_only=True):
    """WebSocket connections."""

    path: str = "/v1/ws"
    """Where they connect."""
    origins: tuple[str, ...] = ()
    """Pages that may connect, as `https://host[:port]`; none listed means pages of this very host only."""
    message_bytes_max: Bytes = 2 * 1024 * 1024
    """One message of a client; more closes with 1009."""
    auth_message_bytes_max: Bytes = 16 * 1024
    """The same before the client has said who it is."""
    fragments_max: Count = 1_024
    """Frames of one message."""
    operations_max: Count = 1_000
    """Operations in one message."""
    tags_max: Count = 1_000
    """Tags in one ack, nack, reject or extend of a consumer."""
    ref_bytes_max: Bytes = 256
    """A `ref` is kept until its answer, and echoed."""
    control_frames_per_second_max: Count = 100
    """Pings and pongs; clients that mean well send one in ten seconds."""
    subscriptions_max: Count = 100
    """Subscriptions of one connection."""
    sub_chars_max: Count = 256
    """Characters of a subscription's name."""
    publishes_in_flight_max: Count = 256
    """Publish operations of one connection waiting for the log; reading pauses at the bound."""
    publish_bytes_in_flight_max: Bytes = 4 * 1024 * 1024
    """Their bytes."""
    send_buffer_bytes_max: Bytes = 1024 * 1024
    """Bytes waiting for a slow reader. Beyond it nothing is written: its subscriptions fall behind in the log."""
    slow_reader_ms: Milliseconds = 30_000
    """As long as a full send buffer may take to drain."""
    read_bytes_max: Bytes = 256 * 1024
    """Record bytes of one read; bounds how far a write overshoots the send buffer."""
    read_records_max: Count = 1_000
    """Records of one read."""
    frame_bytes_max: Bytes = 512 * 1024
    """Bytes of one `records` message, or one record: clients refuse large frames (`websockets`: 1 MiB)."""
    read_wait_ms: Milliseconds = 10_000
    """How long one read waits for records before the rights are looked at again."""
    reads_in_flight_max: Count = 16
    """Reads of subscribers that are behind, over all connections."""
    auth_timeout_ms: Milliseconds = 5_000
    """How long a connection may stay without valid credentials; then close 4408."""
    ping_interval_ms: Milliseconds = 20_000
    """Idle time after which the node pings."""
    ping_timeout_ms: Milliseconds = 20_000
    """How long a pong may take; then the connection is closed."""
    close_timeout_ms: Milliseconds = 5_000
    """How long the closing handshake may take; then the connection is cut."""
    drain_ms: Milliseconds = 5_000
    """What publishes under way may take when the node stops."""
    recheck_ms: Milliseconds = 500
    """How often live credentials are looked at: a revocation takes hold within a second."""
    turn_frames_max: Count = 256
    """Frames and operations of one connection handled before the others have their turn."""


class KafkaSection(Section, frozen=True, kw_only=True):
    """Kafka clients."""

    node_id: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 1
    """The number of this node in what clients are told of the cluster."""
    advertised_host: str = ""
    """Where clients are told to connect; default the address that they have connected to."""
    advertised_port: Port = 0
    """The port of it; 0 is the one that they have connected to."""
    request_bytes_max: Bytes = 100 * 1024 * 1024
    """One request; more closes the connection. (socket.request.max.bytes)"""
    open_request_bytes_max: Bytes = 512 * 1024
    """The same before the client has said who it is. (sasl.server.max.receive.size)"""
    received_bytes_max: Bytes = 256 * 1024 * 1024
    """Requests under way or arriving, of all connections; beyond it those that have one are not read.
    (queued.max.request.bytes)"""
    requests_in_flight_max: Count = 64
    """Requests of one connection under way; at the bound it is not read."""
    fetch_bytes_max: Bytes = 16 * 1024 * 1024
    """Batches of one answer to Fetch, whatever the client asks for; a single larger one comes all the same. (fetch.max.bytes)"""
    fetch_sessions_max: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 1_000
    """Fetch sessions of all clients; beyond it those go first that are not used, and clients without one name all their
    partitions in each request. 0: there are none. (max.incremental.fetch.session.cache.slots)"""
    fetch_session_partitions_max: Count = 100_000
    """Partitions that all fetch sessions follow together, about 300 bytes each."""
    idle_ms: Milliseconds = 600_000
    """A connection without a request for so long is closed. (connections.max.idle.ms)"""
    auth_ms: Milliseconds = 30_000
    """How long a client may take to say who it is."""
    request_pause_ms: Milliseconds = 30_000
    """The longest pause within a request; then the connection is closed."""
    failed_authentication_ms: Milliseconds = 100
    """How late a refused log-in is answered. (connection.failed.authentication.delay.ms)"""
    throttle_ms_max: Milliseconds = 30_000
    """How long a request beyond a quota is held back before it is refused; Kafka's clients wait 30 s for an answer."""
    reauthentication_ms_max: Annotated[int, msgspec.Meta(ge=0, le=86_400_000)] = 0
    """How long a SASL session lasts before the client has to prove itself again; 0: as long as its credential.
    (connections.max.reauth.ms)"""


class LimitsSection(Section, frozen=True, kw_only=True):
    """What a listener bears."""

    connections_max: Count = 10_000
    """Open connections; one more is told 503."""
    unsent_bytes_max: Bytes = 128 * 1024
    """Bytes of answers that the kernel takes from the node and has not sent yet, for each connection (TCP_NOTSENT_LOWAT)."""
    send_buffers_bytes_max: Bytes = 256 * 1024 * 1024
    """Bytes waiting for slow readers of WebSocket and event streams, all together. From half of it on, who has bytes waiting gets
    no more until they have left; beyond all of it those who let bytes wait the longest are cut."""
    handshakes_max: Count = 256
    """TLS handshakes under way; one more drops the oldest."""
    handshake_ms: Milliseconds = 10_000
    """How long a TLS handshake may take."""
    head_bytes_max: Bytes = 32 * 1024
    """Request line and headers together; more is refused with 431. (nginx 32 KiB, Node 16 KiB.)"""
    headers_max: Count = 100
    """Header fields of a request; more is refused with 431. (Apache and Go's proxies: 100.)"""
    pipelined_max: Count = 64
    """Requests of one connection that wait for the answer to the first (HTTP/1.1 pipelining); then the connection is closed."""
    request_head_ms: Milliseconds = 10_000
    """From the connection, or the first byte of a further request, to the end of its head; then 408."""
    request_body_ms: Milliseconds = 30_000
    """The longest pause in a request body; then 408."""
    request_total_ms: Milliseconds = 600_000
    """From the head to the end of the body; then 408. Bounds a body that drips."""
    write_stall_ms: Milliseconds = 60_000
    """How long a client may read nothing of an answer; then the connection is cut."""
    keep_alive_ms: Milliseconds = 75_000
    """How long a connection may be idle between requests."""
    linger_ms: Milliseconds = 2_000
    """After a refusal, how long further bytes are read and thrown away: a reset would take the answer with it (RFC 9112, 9.6)."""
    drain_ms: Milliseconds = 10_000
    """At stop, how long requests under way may take to finish."""
    freed_memory_bytes_max: Bytes = 8 * 1024 * 1024
    """Freed memory that the node keeps for what comes next; what a peak leaves beyond it goes back to the system (glibc only)."""
    freed_memory_check_ms: Milliseconds = 1_000
    """How often that is looked at."""


class PolicySection(Section, frozen=True, kw_only=True):
    """Roles and who has them, as `security/policy/mapping.py` describes."""

    roles: dict[str, Any] = {}
    """Role name -> list of rules."""
    bindings: list[Any] = []
    """Tables of role, principals, groups."""


class TokensSection(Section, frozen=True, kw_only=True):
    """Access tokens."""

    reload_ms: Milliseconds = 250
    """How often the files of tokens and users are looked at: a revocation by another process takes hold within a second."""
    tokens_max: Count = 10_000
    """Tokens kept, the revoked and expired included until their place is needed."""
    stale_ms_max: Milliseconds = 60_000
    """How long decisions rest on what was last read while the token file is damaged or away; then all tokens are refused."""


class UsersSection(Section, frozen=True, kw_only=True):
    """Users with passwords."""

    users_max: Count = 10_000
    """Users kept."""
    hashings_max: Count = 2
    """Passwords salted at once, which takes some 10 ms of CPU for each; one more is told to retry."""


class FailedLoginsSection(Section, frozen=True, kw_only=True):
    """What failed log-ins do to the next ones, over all protocols. Nobody waits for what others do at other addresses."""

    failures_free: Count = 10
    """Failed log-ins of one name from one address before the next ones take turns."""
    address_failures_free: Count = 100
    """Wrong credentials from one address, whatever the names, before a name that has not logged in from there waits."""
    name_failures_free: Count = 100
    """Failed log-ins of one name from all addresses before its refusals are answered late."""
    delay_ms: Milliseconds = 100
    """The first such wait; each further failure doubles it."""
    delay_ms_max: Milliseconds = 1_000
    """The longest such wait, and how far apart turns are at most."""
    wait_ms_max: Milliseconds = 4_000
    """Who would wait for longer for a turn is refused with 429; Kafka clients are disconnected, and retry."""
    window_ms: Milliseconds = 600_000
    """Failures, and log-ins, are forgotten after so long without another."""
    entries_max: Count = 10_000
    """Addresses, names, names at an address that failed, and that logged in: so many of each are remembered, the newest."""


class QuotasSection(Section, frozen=True, kw_only=True):
    """What one principal may do; 0 is no limit. A burst of 0 is one second's worth."""

    requests_per_s: Rate = 0.0
    """Operations a second."""
    requests_burst: Rate = 0.0
    """Operations at once after a pause."""
    bytes_in_per_s: Rate = 0.0
    """Published bytes a second."""
    bytes_in_burst: Rate = 0.0
    """Published bytes at once after a pause."""
    bytes_out_per_s: Rate = 0.0
    """Read bytes a second."""
    bytes_out_burst: Rate = 0.0
    """Read bytes at once after a pause."""
