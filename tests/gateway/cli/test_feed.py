"""A subscription that outlives its connections, against a node that fails on purpose."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from gateway.cli.connection import Connection
from gateway.cli.failures import Refused, Unreachable
from gateway.cli.feed import ATTEMPTS_MAX, SUBPROTOCOL, SUBSCRIPTION, Feed
from gateway.cli.positions import Position

Script = Callable[[ServerConnection, int], None]


class ScriptedNode:
    """Holds ten records, 0 to 9, cursors 0-0 to 10-0. `script` is what it does after `subscribed`, from the index asked for."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.subscribes: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.answers: list[Response] = []

    def gate(self, connection: ServerConnection, request: Request) -> Response | None:
        self.headers.append(request.headers.get("Authorization"))
        return self.answers.pop(0) if self.answers else None

    def handle(self, connection: ServerConnection) -> None:
        try:
            message = json.loads(connection.recv())
            self.subscribes.append(message)
            start = message["from"]
            index = int(start["cursor"].split("-")[0]) if isinstance(start, dict) else {"earliest": 0, "latest": 10}[start]
            send(connection, {"op": "subscribed", "sub": SUBSCRIPTION, "cursor": f"{index}-0"})
            self.script(connection, index)
        except ConnectionClosed:
            return


def send(connection: ServerConnection, *messages: dict[str, Any]) -> None:
    connection.send(json.dumps(messages[0] if len(messages) == 1 else messages))


def page(*indexes: int) -> dict[str, Any]:
    return {
        "op": "records",
        "sub": SUBSCRIPTION,
        "records": [{"n": index} for index in indexes],
        "cursor": f"{indexes[-1] + 1}-0",
    }


@contextmanager
def running(node: ScriptedNode) -> Iterator[Connection]:
    server: Server = serve(node.handle, "127.0.0.1", 0, subprotocols=[SUBPROTOCOL], process_request=node.gate)  # type: ignore[list-item]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Connection(f"http://127.0.0.1:{server.socket.getsockname()[1]}", token="node-token")
    finally:
        server.shutdown()
        thread.join()


EARLIEST = Position("earliest")


def feed(connection: Connection, position: Position = EARLIEST, **given: Any) -> tuple[Feed, list[str], list[float]]:
    notices: list[str] = []
    slept: list[float] = []
    return Feed(connection, "orders", None, position, notice=notices.append, sleep=slept.append, **given), notices, slept


def numbers(records: list[bytes]) -> list[int]:
    return [json.loads(record)["n"] for record in records]


def test_records_come_in_order_and_as_the_node_wrote_them() -> None:
    def script(connection: ServerConnection, index: int) -> None:
        connection.send('{"op":"records","sub":"cli","records":[{"n":  1.10}],"cursor":"1-0"}')

    with running(ScriptedNode(script)) as connection:
        assert next(iter(feed(connection)[0])).records == [b'{"n":  1.10}']


def test_several_messages_may_share_a_frame_and_others_are_passed_over() -> None:
    def script(connection: ServerConnection, index: int) -> None:
        send(connection, {"op": "pong", "ref": 1}, page(0, 1), {"op": "something-new", "more": []}, page(2))

    with running(ScriptedNode(script)) as connection:
        pages = iter(feed(connection)[0])
        assert [numbers(next(pages).records) for _ in range(2)] == [[0, 1], [2]]


def test_records_that_the_disk_lost_are_told() -> None:
    lost = {"partition": 3, "from_offset": 5, "to_offset": 8, "reason": "the tag does not match"}

    def script(connection: ServerConnection, index: int) -> None:
        send(connection, {**page(0), "damage": [lost]})

    with running(ScriptedNode(script)) as connection:
        following, notices, _ = feed(connection)
        next(iter(following))
    assert notices == ["the node's disk lost offsets 5 to 7 of partition 3: the tag does not match"]


def test_after_a_lost_connection_nothing_is_missing_and_nothing_comes_twice() -> None:
    def script(connection: ServerConnection, index: int) -> None:
        send(connection, page(*range(index, min(10, index + 2))))
        connection.socket.close() if index % 4 else connection.close(1001)

    node = ScriptedNode(script)
    with running(node) as connection:
        following, notices, slept = feed(connection)
        got: list[int] = []
        for taken in following:
            got += numbers(taken.records)
            if got[-1] == 9:
                break
    assert got == list(range(10))
    assert node.subscribes[0]["from"] == "earliest"
    assert [message["from"] for message in node.subscribes[1:]] == [{"cursor": f"{index}-0"} for index in (2, 4, 6, 8)]
    assert len(slept) == 4
    assert "going on at cursor 2-0" in " ".join(notices)
    assert set(node.headers) == {"Bearer node-token"}


def test_a_feed_from_latest_resumes_where_it_began_even_when_nothing_came() -> None:
    def script(connection: ServerConnection, index: int) -> None:
        if len(node.subscribes) > 1:
            send(connection, page(10))
        connection.close(1011)

    node = ScriptedNode(script)
    with running(node) as connection:
        assert numbers(next(iter(feed(connection, Position("latest"))[0])).records) == [10]
    assert [message["from"] for message in node.subscribes] == ["latest", {"cursor": "10-0"}]


def test_a_page_that_was_not_taken_whole_comes_again() -> None:
    """The cursor moves when the next page is asked for, not when this one was received."""

    def script(connection: ServerConnection, index: int) -> None:
        send(connection, page(0, 1))

    with running(ScriptedNode(script)) as connection:
        following, _, _ = feed(connection)
        next(iter(following))
        assert following.position == Position("cursor", cursor="0-0")


@pytest.mark.parametrize("code", [4401, 4403, 1008, 1007, 1002])
def test_what_the_node_says_no_to_ends_the_feed(code: int) -> None:
    def script(connection: ServerConnection, index: int) -> None:
        connection.close(code, "the token was revoked")

    node = ScriptedNode(script)
    with running(node) as connection, pytest.raises(Refused, match="revoked") as refusal:
        next(iter(feed(connection)[0]))
    assert refusal.value.problem["close_code"] == code
    assert len(node.subscribes) == 1


def test_an_error_message_ends_the_feed_with_its_problem() -> None:
    def script(connection: ServerConnection, index: int) -> None:
        send(
            connection,
            {"op": "error", "sub": SUBSCRIPTION, "problem": {"status": 403, "title": "Not allowed", "instance": "r-1"}},
        )

    with running(ScriptedNode(script)) as connection, pytest.raises(Refused, match="Not allowed") as refusal:
        next(iter(feed(connection)[0]))
    assert refusal.value.request_id == "r-1"


def test_a_refused_handshake_shows_its_problem() -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(401, json.dumps({"title": "The token has expired"}))  # type: ignore[arg-type]

    node = ScriptedNode(lambda connection, index: None)
    node.gate = refuse  # type: ignore[method-assign]
    with running(node) as connection, pytest.raises(Refused, match="expired") as refusal:
        next(iter(feed(connection)[0]))
    assert refusal.value.problem["status"] == 401


@pytest.mark.parametrize("frame", ["", "{", "[1]", '{"op": 1}', '{"op":"records","records":{}}', "\\ufeff{}"])
def test_what_is_no_message_ends_the_feed(frame: str) -> None:
    def script(connection: ServerConnection, index: int) -> None:
        connection.send(frame)

    with running(ScriptedNode(script)) as connection, pytest.raises(Refused, match="not understood"):
        next(iter(feed(connection)[0]))


def test_attempts_in_a_row_are_bounded_and_wait_longer_and_longer() -> None:
    def script(connection: ServerConnection, index: int) -> None:
        node.answers = [connection.respond(503, "draining") for _ in range(2 * ATTEMPTS_MAX)]  # type: ignore[arg-type]
        connection.close(1001)

    node = ScriptedNode(script)
    with running(node) as connection:
        following, notices, slept = feed(connection)
        with pytest.raises(Unreachable, match="no subscription"):
            next(iter(following))
    assert len(slept) == ATTEMPTS_MAX
    assert [notice.rpartition("; ")[2] for notice in notices] == ["trying again"] * 2  # the close, then 503: each told once
    assert len(node.headers) == ATTEMPTS_MAX + 1


def test_a_node_that_never_answered_is_unreachable_at_once() -> None:
    with running(ScriptedNode(lambda connection, index: None)) as connection:
        pass
    following, _, slept = feed(connection)
    with pytest.raises(Unreachable):
        next(iter(following))
    assert slept == []


def test_close_from_another_thread_ends_the_iteration() -> None:
    def script(connection: ServerConnection, index: int) -> None:
        send(connection, page(0))
        connection.recv()

    with running(ScriptedNode(script)) as connection:
        following, notices, _ = feed(connection)
        pages = iter(following)
        next(pages)
        threading.Timer(0.05, following.close).start()
        assert list(pages) == []
        assert notices == []
