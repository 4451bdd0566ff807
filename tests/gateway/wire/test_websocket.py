"""The sans-I/O WebSocket connection: RFC 6455 from the server's side, with `websockets`' own client as the foreign judge."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.protocol import State as ClientState
from websockets.uri import parse_uri

from gateway.wire.websocket import (
    CloseCode,
    Connection,
    Ended,
    Limits,
    State,
    Upgrade,
    origin_allowed,
    text_frame,
)

TEXT, BINARY, CONT, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def masked(
    opcode: int, payload: bytes, *, fin: bool = True, mask: bytes = b"\x01\x02\x03\x04", first: int | None = None
) -> bytes:
    """A client frame, written by hand so that it may also be wrong."""
    head = bytes([first if first is not None else (0x80 if fin else 0) | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += struct.pack("!BH", 0x80 | 126, size)
    else:
        head += struct.pack("!BQ", 0x80 | 127, size)
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


def handshake(**changes: str | None) -> bytes:
    headers: dict[str, str | None] = {
        "host": "localhost:8443",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": KEY,
        "sec-websocket-version": "13",
    }
    headers.update({name.replace("_", "-"): value for name, value in changes.items()})
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return ("GET /v1/ws HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def connected(limits: Limits | None = None) -> Connection:
    connection = Connection(limits or Limits())
    (upgrade,) = connection.receive(handshake())
    assert isinstance(upgrade, Upgrade)
    connection.accept({})
    assert b"".join(connection.data_to_send()).startswith(b"HTTP/1.1 101 ")
    return connection


def opened(limits: Limits | None = None) -> Connection:
    connection = connected(limits)
    connection.authenticated()
    return connection


def close_frame(connection: Connection) -> tuple[int, str]:
    """The close frame among what is left to send, and nothing else."""
    sent = b"".join(connection.data_to_send())
    assert sent[0] == 0x88, sent
    assert len(sent) == 2 + sent[1]
    return struct.unpack("!H", sent[2:4])[0], sent[4:].decode()


class TestHandshake:
    """RFC 6455, 4.2."""

    def test_accept_answers_the_sample_key(self) -> None:
        connection = Connection(Limits())
        connection.receive(handshake())
        connection.accept({"X-Request-Id": "r1"})
        answer = b"".join(connection.data_to_send())
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer
        assert b"X-Request-Id: r1" in answer
        assert connection.state == State.AUTHENTICATING

    def test_every_split_gives_the_same_upgrade(self) -> None:
        request = handshake(origin="https://localhost:8443", authorization="Bearer abc")
        (whole,) = Connection(Limits()).receive(request)
        for cut in range(1, len(request)):
            connection = Connection(Limits())
            assert connection.receive(request[:cut]) == []
            assert connection.receive(request[cut:]) == [whole]

    def test_credentials_are_found_and_do_not_show(self) -> None:
        connection = Connection(Limits())
        offered = "bearer.s3cr3t-token, sprawl.v1.json"
        (upgrade,) = connection.receive(handshake(authorization="Bearer t0p-s3cret", sec_websocket_protocol=offered))
        assert isinstance(upgrade, Upgrade)
        assert (upgrade.authorization, upgrade.token) == ("Bearer t0p-s3cret", "s3cr3t-token")
        assert "s3cr" not in repr(upgrade)

    def test_the_token_is_never_echoed(self) -> None:
        connection = Connection(Limits())
        connection.receive(handshake(sec_websocket_protocol="bearer.s3cret, sprawl.v1.json"))
        connection.accept({})
        answer = b"".join(connection.data_to_send())
        assert b"Sec-WebSocket-Protocol: sprawl.v1.json\r\n" in answer
        assert b"s3cret" not in answer

    def test_no_extension_is_negotiated(self) -> None:
        connection = Connection(Limits())
        connection.receive(handshake(sec_websocket_extensions="permessage-deflate; client_max_window_bits"))
        connection.accept({})
        assert b"extensions" not in b"".join(connection.data_to_send()).lower()

    @pytest.mark.parametrize(
        ("changes", "status"),
        [
            ({"sec_websocket_key": None}, 400),
            ({"sec_websocket_key": "short"}, 400),
            ({"sec_websocket_key": "AAAA"}, 400),
            ({"sec_websocket_version": None}, 400),
            ({"sec_websocket_version": "8"}, 400),
            ({"upgrade": "h2c"}, 426),
            ({"upgrade": None}, 426),
            ({"connection": "keep-alive"}, 426),
            ({"sec_websocket_protocol": "mqtt"}, 400),
            ({"sec_websocket_protocol": "bearer.s3cret"}, 400),
            ({"authorization": "Bearer a\r\nauthorization: Bearer b"}, 400),
            ({"origin": "https://a\r\norigin: https://b"}, 400),
            ({"host": "a\r\nhost: b"}, 400),
            ({"x": "y" * 9000}, 431),
            ({f"x_{number}": "y" for number in range(200)}, 431),
        ],
    )
    def test_refusals(self, changes: dict[str, str | None], status: int) -> None:
        connection = Connection(Limits())
        (ended,) = connection.receive(handshake(**changes))
        assert isinstance(ended, Ended)
        answer = b"".join(connection.data_to_send())
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"s3cret" not in answer
        assert connection.state == State.CLOSED
        assert connection.ended

    @pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00\x01\x00\r\n", b"POST / HTTP/1.1\r\n\r\n", b"\r\n", b"GET\r\n\r\n"])
    def test_what_is_no_handshake_ends_the_connection(self, junk: bytes) -> None:
        connection = Connection(Limits())
        (ended,) = connection.receive(junk)
        assert isinstance(ended, Ended)
        connection.data_to_send()
        assert connection.ended
        assert connection.receive(b"more") == []

    def test_reject_sends_a_problem_and_ends(self) -> None:
        connection = Connection(Limits())
        connection.receive(handshake())
        connection.reject(403, {"Content-Type": "application/problem+json"}, b'{"status":403}')
        answer = b"".join(connection.data_to_send())
        assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert answer.endswith(b'\r\n\r\n{"status":403}')
        assert b"Content-Length: 14" in answer
        assert connection.ended


class TestOrigin:
    """RFC 6455, 10.2: browsers say where the page came from."""

    @pytest.mark.parametrize(
        ("origin", "host", "secure", "allowed", "expected"),
        [
            (None, "localhost:8443", True, [], True),
            ("https://localhost:8443", "localhost:8443", True, [], True),
            ("https://LOCALHOST:8443", "localhost:8443", True, [], True),
            ("https://example.test", "example.test", True, [], True),
            ("https://example.test", "example.test:443", True, [], True),
            ("https://[::1]:8443", "[::1]:8443", True, [], True),
            ("http://localhost:8080", "localhost:8080", False, [], True),
            ("http://localhost:8443", "localhost:8443", True, [], False),
            ("https://localhost:8444", "localhost:8443", True, [], False),
            ("https://evil.test", "localhost:8443", True, [], False),
            ("https://localhost:8443.evil.test", "localhost:8443", True, [], False),
            ("https://user@localhost:8443", "localhost:8443", True, [], False),
            ("https://localhost:8443/path", "localhost:8443", True, [], False),
            ("https://localhost:99999", "localhost:99999", True, [], False),
            ("h\tttps://localhost:8443", "localhost:8443", True, [], False),
            ("https://local\thost:8443", "localhost:8443", True, [], False),
            ("https://localhost:8443#x", "localhost:8443", True, [], False),
            ("https://localhost:08443", "localhost:8443", True, [], False),
            ("https://localhost:8443?", "localhost:8443", True, [], False),
            (" https://localhost:8443", "localhost:8443", True, [], False),
            ("null", "localhost:8443", True, [], False),
            ("", "localhost:8443", True, [], False),
            ("https://", "", True, [], False),
            ("https://app.test", "localhost:8443", True, ["https://app.test"], True),
            ("https://localhost:8443", "localhost:8443", True, ["https://app.test"], False),
            ("https://app.test.evil.test", "localhost:8443", True, ["https://app.test"], False),
        ],
    )
    def test_table(self, origin: str | None, host: str, secure: bool, allowed: list[str], expected: bool) -> None:
        assert origin_allowed(origin, host, secure=secure, allowed=allowed) is expected


class TestMessages:
    """RFC 6455, 5.4 to 5.6."""

    @pytest.mark.parametrize("text", ["", "{}", "gr\u00fc\u00dfe \U0001f600", "x" * 125, "x" * 126, "x" * 65535, "x" * 65536])
    def test_one_message_whole_and_split(self, text: str) -> None:
        frame = masked(TEXT, text.encode())
        assert opened().receive(frame) == [text.encode()]
        cuts = range(1, len(frame)) if len(frame) < 300 else (1, 2, 3, 10, len(frame) - 1)
        for cut in cuts:
            connection = opened()
            assert connection.receive(frame[:cut]) == []
            assert connection.receive(frame[cut:]) == [text.encode()]

    def test_a_whole_buffer_of_messages(self) -> None:
        connection = opened()
        assert connection.receive(b"".join(masked(TEXT, b"%d" % number) for number in range(100))) == [
            b"%d" % number for number in range(100)
        ]

    @given(st.text(max_size=200), st.lists(st.integers(0, 400), max_size=8), st.integers(1, 50))
    def test_fragments_are_joined_also_inside_a_character(self, text: str, cuts: list[int], step: int) -> None:
        payload = text.encode()
        edges = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
        parts = [payload[start:stop] for start, stop in itertools.pairwise(edges)]
        stream = b"".join(
            masked(CONT if place else TEXT, part, fin=place == len(parts) - 1) + masked(PING, b"between" if place else b"")
            for place, part in enumerate(parts)
        )
        connection = opened()
        events = [event for start in range(0, len(stream), step) for event in connection.receive(stream[start : start + step])]
        assert events == [payload]
        assert connection.control_frames == len(parts)

    def test_ping_is_answered_with_its_payload(self) -> None:
        connection = opened()
        assert connection.receive(masked(PING, b"hello")) == []
        assert connection.data_to_send() == [b"\x8a\x05hello"]

    def test_our_ping_is_unmasked(self) -> None:
        connection = opened()
        connection.ping(b"\x01\x02")
        assert connection.data_to_send() == [b"\x89\x02\x01\x02"]


VIOLATIONS = [
    pytest.param(b"\x81\x02{}", CloseCode.PROTOCOL_ERROR, id="unmasked"),
    pytest.param(masked(TEXT, b"{}", first=0xC1), CloseCode.PROTOCOL_ERROR, id="rsv1-without-extension"),
    pytest.param(masked(TEXT, b"{}", first=0x91), CloseCode.PROTOCOL_ERROR, id="rsv3"),
    pytest.param(masked(3, b""), CloseCode.PROTOCOL_ERROR, id="reserved-data-opcode"),
    pytest.param(masked(11, b""), CloseCode.PROTOCOL_ERROR, id="reserved-control-opcode"),
    pytest.param(masked(CONT, b"x"), CloseCode.PROTOCOL_ERROR, id="continuation-of-nothing"),
    pytest.param(masked(TEXT, b"a", fin=False) + masked(TEXT, b"b"), CloseCode.PROTOCOL_ERROR, id="message-inside-a-message"),
    pytest.param(masked(PING, b"x" * 126), CloseCode.PROTOCOL_ERROR, id="long-ping"),
    pytest.param(masked(PING, b"", fin=False), CloseCode.PROTOCOL_ERROR, id="fragmented-ping"),
    pytest.param(masked(CLOSE, b"\x03"), CloseCode.PROTOCOL_ERROR, id="close-of-one-byte"),
    pytest.param(masked(CLOSE, struct.pack("!H", 1005)), CloseCode.PROTOCOL_ERROR, id="close-with-a-reserved-code"),
    pytest.param(masked(CLOSE, struct.pack("!H", 1000) + b"\xff"), CloseCode.INVALID_DATA, id="close-reason-not-utf-8"),
    pytest.param(masked(TEXT, b"a", fin=False) + masked(CLOSE, b""), CloseCode.PROTOCOL_ERROR, id="close-inside-a-message"),
    pytest.param(masked(BINARY, b"{}"), CloseCode.UNSUPPORTED_DATA, id="binary"),
    pytest.param(masked(BINARY, b"{", fin=False), CloseCode.UNSUPPORTED_DATA, id="binary-fragment"),
    pytest.param(masked(TEXT, b'{"a":"\xff"}'), CloseCode.INVALID_DATA, id="invalid-utf-8"),
    pytest.param(masked(TEXT, b'"\xed\xa0\x80"'), CloseCode.INVALID_DATA, id="lone-surrogate"),
    pytest.param(masked(TEXT, b"\xf0\x9f", fin=False) + masked(CONT, b"\x98"), CloseCode.INVALID_DATA, id="cut-character"),
    pytest.param(masked(TEXT, b"x" * 1001), CloseCode.MESSAGE_TOO_BIG, id="big-frame"),
    pytest.param(
        masked(TEXT, b"x" * 600, fin=False) + masked(CONT, b"x" * 401, fin=False),
        CloseCode.MESSAGE_TOO_BIG,
        id="big-in-fragments",
    ),
    pytest.param(b"\x81\xff" + b"\xff" * 8, CloseCode.MESSAGE_TOO_BIG, id="frame-of-2-to-the-64"),
    pytest.param(
        masked(TEXT, b"", fin=False) + masked(CONT, b"", fin=False) * 20, CloseCode.POLICY_VIOLATION, id="flood-of-fragments"
    ),
]


class TestViolations:
    """RFC 6455, 7.4: each with its own code, however it arrives."""

    limits = Limits(message_bytes_max=1000, fragments_max=20)

    @pytest.mark.parametrize(("stream", "code"), VIOLATIONS)
    def test_whole(self, stream: bytes, code: CloseCode) -> None:
        connection = opened(self.limits)
        (ended,) = connection.receive(stream)
        assert isinstance(ended, Ended)
        assert (ended.code, ended.by_peer) == (code, False)
        assert close_frame(connection) == (code, ended.reason)
        assert connection.ended
        assert connection.state == State.CLOSED

    @pytest.mark.parametrize(("stream", "code"), VIOLATIONS)
    def test_byte_by_byte_with_more_behind(self, stream: bytes, code: CloseCode) -> None:
        connection = opened(self.limits)
        events = [event for byte in stream for event in connection.receive(bytes([byte]))]
        events += connection.receive(masked(TEXT, b"{}") * 3 + masked(CLOSE, b""))
        assert [type(event) for event in events] == [Ended]
        assert close_frame(connection)[0] == code

    def test_messages_before_the_violation_are_kept(self) -> None:
        events = opened().receive(masked(TEXT, b"1") + masked(TEXT, b"2") + b"\x81\x00")
        assert events[:2] == [b"1", b"2"]
        assert isinstance(events[2], Ended)

    def test_messages_are_small_until_authenticated(self) -> None:
        limits = Limits(message_bytes_max=1000, auth_message_bytes_max=100)
        connection = connected(limits)
        assert connection.receive(masked(TEXT, b"x" * 100)) == [b"x" * 100]
        (ended,) = connection.receive(masked(TEXT, b"x" * 101))
        assert isinstance(ended, Ended)
        assert ended.code == CloseCode.MESSAGE_TOO_BIG
        connection = opened(limits)
        assert connection.receive(masked(TEXT, b"x" * 1000)) == [b"x" * 1000]

    def test_a_partial_message_is_bounded(self) -> None:
        connection = opened(self.limits)
        for _ in range(500):
            connection.receive(masked(TEXT, b"x" * 10, fin=False))
            assert len(connection._partial) <= 1000


class TestClosing:
    """RFC 6455, 7."""

    def test_the_peer_closes(self) -> None:
        connection = opened()
        assert connection.receive(masked(CLOSE, struct.pack("!H", 1000) + b"bye")) == [Ended(1000, "bye", by_peer=True)]
        assert close_frame(connection) == (1000, "bye")
        assert connection.ended

    def test_we_close(self) -> None:
        connection = opened()
        connection.close(CloseCode.GOING_AWAY, "drain")
        assert close_frame(connection) == (1001, "drain")
        assert connection.state == State.CLOSING
        assert not connection.ended
        assert connection.receive(masked(TEXT, b"{}") + masked(BINARY, b"") + masked(TEXT, b"", fin=False)) == []
        assert connection.receive(masked(CLOSE, struct.pack("!H", 1001))) == []
        assert connection.data_to_send() == []
        assert connection.ended

    def test_close_twice_sends_one_frame(self) -> None:
        connection = opened()
        connection.close(4403, "revoked")
        connection.close(1001, "drain")
        assert close_frame(connection) == (4403, "revoked")

    def test_a_long_reason_is_cut_between_characters(self) -> None:
        connection = opened()
        connection.close(4401, "\u00fc" * 200)
        assert close_frame(connection) == (4401, "\u00fc" * 61)

    @pytest.mark.parametrize("sent", [b"", masked(TEXT, b"{}")[:3], masked(TEXT, b"a", fin=False), handshake()[:30]])
    def test_half_closed_without_a_close_frame(self, sent: bytes) -> None:
        connection = Connection(Limits()) if sent.startswith(b"GET") else opened()
        connection.receive(sent)
        (ended,) = connection.receive_eof()
        assert isinstance(ended, Ended)
        assert ended.code == CloseCode.ABNORMAL
        assert connection.receive_eof() == []
        assert connection.receive(b"more") == []


class TestTextFrame:
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
    def test_equals_what_websockets_writes(self, size: int) -> None:
        from websockets.frames import Opcode

        assert text_frame(b"x" * size) == Frame(Opcode.TEXT, b"x" * size).serialize(mask=False)

    def test_a_foreign_client_understands_the_whole_conversation(self) -> None:
        client = ClientProtocol(parse_uri("ws://localhost:8443/v1/ws"), origin=None)
        request = client.connect()
        client.send_request(request)
        server = Connection(Limits())
        (upgrade,) = server.receive(b"".join(client.data_to_send()))
        assert isinstance(upgrade, Upgrade)
        assert upgrade.path == "/v1/ws"
        server.accept({})
        server.authenticated()
        client.receive_data(b"".join(server.data_to_send()) + text_frame("gr\u00fc\u00dfe".encode()))
        assert client.state is ClientState.OPEN
        assert bytes(client.events_received()[-1].data) == "gr\u00fc\u00dfe".encode()
        client.send_text(b'{"op":"ping"}')
        client.send_close(1000, "done")
        assert server.receive(b"".join(client.data_to_send())) == [b'{"op":"ping"}', Ended(1000, "done", by_peer=True)]
        client.receive_data(b"".join(server.data_to_send()))
        client.receive_eof()
        assert client.close_code == 1000
