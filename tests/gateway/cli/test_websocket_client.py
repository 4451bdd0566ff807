"""The blocking WebSocket of the command line, against a real node over TLS and against servers that misbehave on purpose."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.sync.server import Server, ServerConnection, serve

from gateway.cli import websocket_client
from gateway.cli.connection import Connection
from gateway.cli.websocket_client import FRAMES_WAITING_MAX, MESSAGES_UNSENT_MAX, WebSocketClient

SUBPROTOCOL = "sprawl.v1.json"
MESSAGES = 80
MESSAGE = "x" * 2**20  # 80 of them are more than the queues and the kernel's buffers of both sides hold


@contextmanager
def serving(handle: Callable[[ServerConnection], None], **options: Any) -> Iterator[Connection]:
    server: Server = serve(handle, "127.0.0.1", 0, subprotocols=[SUBPROTOCOL], compression=None, **options)  # type: ignore[list-item]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Connection(f"http://127.0.0.1:{server.socket.getsockname()[1]}", token="a-token")
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def listening(meet: Callable[[socket.socket], None]) -> Iterator[Connection]:
    """For one connection, in the words of TCP. It ends when the client is gone."""

    def accept() -> None:
        accepted, _ = listener.accept()
        with accepted:
            meet(accepted)
            gone.wait()

    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield Connection(f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            gone.set()
            thread.join()


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


def shake_hands(accepted: socket.socket) -> None:
    """And never read or write again."""
    protocol = ServerProtocol(subprotocols=[SUBPROTOCOL])  # type: ignore[list-item]
    while not (events := protocol.events_received()):
        protocol.receive_data(accepted.recv(65_536))
    request = events[0]
    assert isinstance(request, Request)
    protocol.send_response(protocol.accept(request))
    for data in protocol.data_to_send():
        accepted.sendall(data)


def send_all(client: WebSocketClient, messages: list[str]) -> None:
    for message in messages:
        client.send(message)


def ask(client: WebSocketClient, message: str) -> Any:
    client.send(message)
    return client.recv()


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does to it: no thread and no loop outlives the client."""
    make = asyncio.new_event_loop
    loops: list[asyncio.AbstractEventLoop] = []

    def new_event_loop() -> asyncio.AbstractEventLoop:
        loops.append(make())
        return loops[-1]

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "new_event_loop", new_event_loop)
        yield
    assert loops
    assert all(loop.is_closed() for loop in loops)
    assert [thread.name for thread in threading.enumerate() if thread.name == "websocket"] == []


@pytest.mark.services
def test_one_thread_does_all_tls(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads on one TLS object stood still now and then: the request was never sent."""
    threads: dict[str, set[int]] = {}

    def told(kind: type[Any], name: str) -> Callable[..., Any]:
        def method(self: Any, *arguments: Any, **named: Any) -> Any:
            threads.setdefault(name, set()).add(threading.get_ident())
            return getattr(super(kind, self), name)(*arguments, **named)

        return method

    class Told(ssl.SSLObject): ...

    class ToldSocket(ssl.SSLSocket): ...

    for kind, names in ((Told, ("read", "write", "do_handshake")), (ToldSocket, ("recv", "recv_into", "send", "do_handshake"))):
        for name in names:
            setattr(kind, name, told(kind, name))
    profile = node.profile
    context = Connection(profile.url, profile.ca).tls()
    context.sslobject_class, context.sslsocket_class = Told, ToldSocket
    monkeypatch.setattr(Connection, "tls", lambda self: context)
    with WebSocketClient(Connection(profile.url, profile.ca, profile.token), SUBPROTOCOL) as client:
        assert json.loads(client.recv(10))["op"] == "ready"
        client.send(json.dumps({"op": "ping", "ref": 7}))
        assert json.loads(client.recv(10)) == {"op": "pong", "ref": 7}
    everywhere = set.union(*threads.values())
    assert len(everywhere) == 1
    assert everywhere != {threading.get_ident()}
    assert set(threads) == {"read", "write", "do_handshake"}


def test_pings_are_answered_while_the_caller_is_busy() -> None:
    ponged = threading.Event()

    def handle(connection: ServerConnection) -> None:
        connection.ping().wait()
        ponged.set()
        echo(connection)

    with serving(handle) as connection, WebSocketClient(connection, SUBPROTOCOL):
        ponged.wait()


def test_a_message_that_came_too_late_is_not_lost() -> None:
    with serving(echo) as connection, WebSocketClient(connection, SUBPROTOCOL) as client:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                client.recv(0.0)
        assert ask(client, "late") == "late"


def test_messages_that_nobody_takes_wait_at_the_node() -> None:
    sent: list[int] = []

    def handle(connection: ServerConnection) -> None:
        for number in range(MESSAGES):
            connection.send(MESSAGE)
            sent.append(number)
        echo(connection)

    with serving(handle) as connection, WebSocketClient(connection, SUBPROTOCOL) as client:
        assert client._socket is not None
        waiting = client._socket.recv_messages
        while not waiting.paused:
            threading.Event().wait(0.005)
        assert len(sent) < MESSAGES
        assert len(waiting.frames) + client._received.qsize() <= FRAMES_WAITING_MAX + 2  # each queue pauses behind the last
        assert [client.recv() for _ in range(MESSAGES)] == [MESSAGE] * MESSAGES


def test_messages_that_the_node_does_not_read_hold_the_sender_back() -> None:
    reading = threading.Event()
    sent: list[int] = []

    def handle(connection: ServerConnection) -> None:
        reading.wait()
        for _ in range(MESSAGES):
            assert connection.recv() == MESSAGE
        connection.send("all of them")

    def fill() -> None:
        for number in range(MESSAGES):
            client.send(MESSAGE)
            sent.append(number)

    with serving(handle) as connection, WebSocketClient(connection, SUBPROTOCOL) as client:
        sender = threading.Thread(target=fill)
        sender.start()
        while len(client._unsent) < MESSAGES_UNSENT_MAX - 1:  # one is taken out to be waited for
            threading.Event().wait(0.005)
        assert len(sent) < MESSAGES
        assert len(client._unsent) <= MESSAGES_UNSENT_MAX
        reading.set()
        sender.join()
        assert client.recv() == "all of them"


def test_messages_handed_over_go_before_the_goodbye() -> None:
    received: list[Any] = []
    ended = threading.Event()

    def handle(connection: ServerConnection) -> None:
        received.extend(connection)  # ends without an error by a goodbye only
        ended.set()

    with serving(handle) as connection:
        with WebSocketClient(connection, SUBPROTOCOL) as client:
            send_all(client, [str(number) for number in range(1_000)])
        ended.wait()
    assert received == [str(number) for number in range(1_000)]


def test_the_goodbye_is_heard_behind_messages_that_nobody_took() -> None:
    """`sprawl subscribe --count 10` of a long topic took the whole time for the goodbye: the node's answer stood in the queue."""

    def handle(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                connection.send(MESSAGE)

    with serving(handle) as connection:
        with WebSocketClient(connection, SUBPROTOCOL) as client:
            assert client.recv() == MESSAGE
        with pytest.raises(ConnectionClosedOK) as closed:
            client.send("too late")
    assert closed.value.rcvd is not None


def test_a_node_that_is_away_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_client, "CLOSE_TIMEOUT_S", 0.05)
    with listening(shake_hands) as connection:
        with WebSocketClient(connection, SUBPROTOCOL) as client:
            send_all(client, [MESSAGE] * MESSAGES_UNSENT_MAX)
        with pytest.raises(ConnectionClosedError) as closed:
            client.recv()
    assert closed.value.rcvd is None


def test_what_the_node_closes_with_is_told() -> None:
    with (
        serving(lambda connection: connection.close(4401, "revoked")) as connection,
        WebSocketClient(connection, SUBPROTOCOL) as client,
    ):
        for _ in range(2):
            with pytest.raises(ConnectionClosedError) as closed:
                client.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, "revoked")
        with pytest.raises(ConnectionClosedError):
            send_all(client, ["nobody hears it"] * (MESSAGES_UNSENT_MAX + 1))


def test_a_frame_beyond_the_bound_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_client, "FRAME_BYTES_MAX", 1_000)
    with (
        serving(lambda connection: connection.send("x" * 1_001)) as connection,
        WebSocketClient(connection, SUBPROTOCOL) as client,
    ):
        with pytest.raises(ConnectionClosedError) as closed:
            client.recv()
        assert closed.value.sent is not None
        assert closed.value.sent.code == 1009


def test_close_ends_the_call_that_waits_in_another_thread() -> None:
    ended: list[type[Exception]] = []

    def wait() -> None:
        try:
            client.recv()
        except ConnectionClosed as closed:
            ended.append(type(closed))

    with serving(echo) as connection, WebSocketClient(connection, SUBPROTOCOL) as client:
        waiting = threading.Thread(target=wait)
        waiting.start()
        for _ in range(2):
            client.close()
        waiting.join()
        with pytest.raises(ConnectionClosedOK):
            client.recv()
    assert ended == [ConnectionClosedOK]


def test_a_refusal_passes_through() -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        assert request.headers["Authorization"] == "Bearer a-token"
        return connection.respond(401, "expired")

    with serving(echo, process_request=refuse) as connection, pytest.raises(InvalidStatus) as refusal:
        WebSocketClient(connection, SUBPROTOCOL)
    assert (refusal.value.response.status_code, refusal.value.response.body) == (401, b"expired")


def test_nobody_there() -> None:
    with serving(echo) as connection:
        pass
    with pytest.raises(ConnectionRefusedError):
        WebSocketClient(connection, SUBPROTOCOL)


def test_a_node_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_client, "OPEN_TIMEOUT_S", 0.05)
    with listening(lambda accepted: None) as connection, pytest.raises(TimeoutError):
        WebSocketClient(connection, SUBPROTOCOL)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_a_wait_and_takes_no_message_with_it() -> None:
    def handle(connection: ServerConnection) -> None:
        for message in connection:
            if message == "press":
                press_ctrl_c()
            else:
                connection.send(message)

    with serving(handle) as connection, WebSocketClient(connection, SUBPROTOCOL) as client:
        with pytest.raises(KeyboardInterrupt):
            ask(client, "press")
        assert ask(client, "after") == "after"


def test_ctrl_c_ends_the_opening() -> None:
    with listening(lambda accepted: press_ctrl_c()) as connection, pytest.raises(KeyboardInterrupt):
        WebSocketClient(connection, SUBPROTOCOL)
