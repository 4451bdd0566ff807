"""The HTTP side, against a node that fails on purpose."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import client as client_module
from gateway.cli.client import BACKOFF_MAX_S, Client, backoff_s
from gateway.cli.connection import Connection
from gateway.cli.failures import Refused, Unreachable


class Answers:
    """(status, headers, body) each, in order; what was asked is kept."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []


@contextmanager
def answering(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[Client, Answers]]:
    script = Answers(*answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            script.asked.append((self.command, self.path, dict(self.headers), body))
            status, headers, content = script.answers.pop(0)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with Client(Connection(f"http://127.0.0.1:{server.server_port}", token="the-token")) as client:
            yield client, script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_publish_is_one_ndjson_request_over_a_kept_connection() -> None:
    receipts = json.dumps({"records": [{"id": "x", "topic": "a b", "partition": 0}]}).encode()
    with answering((202, {}, receipts), (200, {}, receipts)) as (client, script):
        assert client.publish("a b", b'{"text":"x"}', "none") == [{"id": "x", "topic": "a b", "partition": 0}]
        client.publish("a b", b'{"text":"x"}', "durable")
    method, path, headers, body = script.asked[0]
    assert (method, path, body) == ("POST", "/v1/topics/a%20b/records?acks=none", b'{"text":"x"}')
    assert (headers["Authorization"], headers["Content-Type"]) == ("Bearer the-token", "application/x-ndjson")


def test_an_empty_answer_is_none() -> None:
    with answering((204, {}, b"")) as (client, _):
        assert client.call("POST", "/v1/tokens") is None


@pytest.mark.parametrize(
    ("body", "title"),
    [
        (b'{"title": "Too much", "detail": "later", "retry_after_ms": 7}', "Too much"),
        (b"<html>Bad gateway</html>", "HTTP 502 Bad Gateway"),
        (b"[]", "HTTP 502 Bad Gateway"),
        (b"", "HTTP 502 Bad Gateway"),
        (b"\xff", "HTTP 502 Bad Gateway"),
    ],
)
def test_a_refusal_is_shown_whatever_its_body(body: bytes, title: str) -> None:
    with answering((502, {"X-Request-Id": "r-17"}, body)) as (client, _), pytest.raises(Refused) as refusal:
        client.call("GET", "/v1/topics")
    assert (refusal.value.title, refusal.value.request_id, refusal.value.problem["status"]) == (title, "r-17", 502)


@pytest.mark.parametrize("body", [b"<html>", b'{"a": 1', b"\xff", b"[1]"])
def test_an_answer_that_is_not_understood_is_no_crash(body: bytes) -> None:
    with answering((200, {}, body)) as (client, _), pytest.raises(Refused, match="not understood"):
        client.call("GET", "/", kind=dict[str, int])


def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ANSWER_BYTES_MAX", 1000)
    with answering((200, {}, b" " * 1001)) as (client, _), pytest.raises(Refused, match="larger than 1000 bytes"):
        client.call("GET", "/")


def test_no_answer_says_what_to_do() -> None:
    with answering() as (client, _):
        pass
    with Client(client.connection) as late, pytest.raises(Unreachable) as failure:
        late.call("GET", "/livez")
    assert "sprawl serve" in failure.value.what_to_do


def test_an_answer_that_is_cut_is_no_answer() -> None:
    cut = (200, {"Content-Length": "100", "Connection": "close"}, b'{"records": [')
    with answering(cut) as (client, _), pytest.raises(Unreachable):
        client.call("GET", "/")


@given(st.integers(0, 200), st.floats(0, 1e6))
def test_backoff_is_bounded_and_never_below_what_the_node_asked(failures: int, at_least_s: float) -> None:
    wait_s = backoff_s(failures, at_least_s)
    assert min(at_least_s, BACKOFF_MAX_S) <= wait_s <= 2 * BACKOFF_MAX_S
