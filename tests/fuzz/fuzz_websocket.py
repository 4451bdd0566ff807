"""Fuzz target: the server side of a WebSocket connection, from the opening handshake to operations for the pipeline.

`one_input(data)` raises when an invariant breaks. The first byte says how the rest is cut into reads, and whether the handshake
is ours (so that the fuzzer reaches the frames at once) or part of the data.
"""

from __future__ import annotations

from gateway.endpoints.websocket_messages import (
    Publish,
    Refused,
    Subscribe,
    address_of,
    decode_operations,
    incoming_of,
    position_of,
)
from gateway.errors import GatewayError
from gateway.wire.websocket import Connection, Ended, Limits, State, Upgrade

LIMITS = Limits(message_bytes_max=512, auth_message_bytes_max=64, fragments_max=8)

HANDSHAKE = (
    b"GET /v1/ws HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)


def one_input(data: bytes) -> None:
    """Any bytes: no exception, bounded memory, at most one end, nothing reported after it, only our frames go out."""
    plan, stream = (data[0], data[1:]) if data else (0, b"")
    connection = Connection(LIMITS)
    limit = LIMITS.auth_message_bytes_max
    if plan & 0x80:
        connection.receive(HANDSHAKE)
        connection.accept({})
        assert b"".join(connection.data_to_send()).startswith(b"HTTP/1.1 101 ")
        if plan & 0x40:
            connection.authenticated()
            limit = LIMITS.message_bytes_max
    step = (plan & 0x3F) or len(stream) or 1
    ended = 0
    for start in range(0, len(stream), step):
        for event in connection.receive(stream[start : start + step]):
            assert not ended, "an event after the end"
            if isinstance(event, Upgrade):
                assert connection.state == State.CONNECTING
                connection.accept({})
            elif isinstance(event, Ended):
                ended += 1
            else:
                assert len(event) <= limit
                check_message(event)
        assert len(connection._partial) <= limit
        _check_frames(b"".join(connection.data_to_send()))
    if not ended and not connection.ended:
        connection.close(1001, "")
        _check_frames(b"".join(connection.data_to_send()))
    connection.receive_eof()


def check_message(message: bytes) -> None:
    """Any UTF-8: operations or refusals, and of an operation's contents only refusals too."""
    message.decode()
    for operation in decode_operations(message, operations_max=10, ref_bytes_max=100):
        assert len(operation.ref) <= 100
        if isinstance(operation, Refused):
            assert str(operation.error)
            continue
        try:
            if isinstance(operation, Publish):
                incoming_of(operation)
            elif isinstance(operation, Subscribe):
                address_of(operation)
                position_of(operation.start)
        except GatewayError:
            continue


def _check_frames(sent: bytes) -> None:
    """Handshake answers, pongs and close frames: unmasked, final, short."""
    if sent.startswith(b"HTTP/1.1 "):
        sent = sent.partition(b"\r\n\r\n")[2] if sent.startswith(b"HTTP/1.1 101") else b""
    while sent:
        assert sent[0] in (0x88, 0x8A), sent
        assert sent[1] <= 125
        sent = sent[2 + sent[1] :]
