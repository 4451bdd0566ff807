"""The HTTP side of the CLI: one kept connection to one node, answers as parsed JSON, refusals as `Refused`.

Nothing here knows more of a node than any other client would: it speaks the public REST surface.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from gateway.cli.connection import Connection
from gateway.cli.failures import Refused, Unreachable

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024

# About 20 s of trying in all: longer than a restart of a node takes, shorter than anybody waits for a prompt.
RETRIES_DEFAULT = 8
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0


class Client:
    """A context manager. Errors: `Refused` for any answer of 400 and above, `Unreachable` when none came."""

    def __init__(self, connection: Connection) -> None:
        import httpx

        headers = {"User-Agent": "sprawl-cli", "Accept": "application/json"}
        if connection.token is not None:
            headers["Authorization"] = f"Bearer {connection.token}"
        self.connection = connection
        self._http = httpx.Client(
            base_url=connection.url,
            headers=headers,
            verify=connection.tls() if connection.encrypted else True,
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=not connection.is_loopback,
            limits=httpx.Limits(max_connections=1),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        document: Any = None,
        body: bytes | None = None,
        content_type: str | None = None,
        kind: Any = Any,
    ) -> Any:
        """The answer's JSON as `kind`, None for an empty one."""
        import httpx

        headers = {"Content-Type": content_type} if content_type else None
        try:
            with self._http.stream(method, path, params=query, json=document, content=body, headers=headers) as answer:
                content = _read_whole(answer)
        except httpx.TransportError as error:
            raise unreachable(self.connection, error) from None
        if answer.status_code >= 400:
            raise _refused(answer, content)
        return _parse(answer.status_code, content, kind) if content else None

    def lines(self, path: str, *, query: Mapping[str, str] | None = None, wait_s: float = ANSWER_TIMEOUT_S) -> Iterator[str]:
        """The lines of an event stream as they come, until it ends or nothing comes for `wait_s`: then `Unreachable`."""
        import httpx

        headers = {"Accept": "text/event-stream"}
        timeout = httpx.Timeout(wait_s, connect=CONNECT_TIMEOUT_S)
        try:
            with self._http.stream("GET", path, params=query, headers=headers, timeout=timeout) as answer:
                if answer.status_code >= 400:
                    raise _refused(answer, _read_whole(answer))
                yield from answer.iter_lines()
        except httpx.TransportError as error:
            raise unreachable(self.connection, error) from None

    def publish(self, topic: str, body: bytes, acks: str) -> list[dict[str, Any]]:
        """One atomic append of the NDJSON record objects in `body`; the receipts in their order."""
        answer = self.call(
            "POST",
            f"/v1/topics/{quote(topic, safe='')}/records",
            query={"acks": acks},
            body=body,
            content_type="application/x-ndjson",
        )
        records: list[dict[str, Any]] = answer["records"]
        return records


class Retry:
    """Sends again what a node may not have taken: after 503, 429 and lost connections, a bounded number of times.

    The same bytes go out each time, message ids included, so a record that was stored twice can be told apart by its id.
    """

    def __init__(self, retries_max: int = RETRIES_DEFAULT, sleep: Callable[[float], None] = time.sleep) -> None:
        self.retries_max, self._sleep = retries_max, sleep
        self.resent = 0

    def run(self, attempt: Callable[[], list[dict[str, Any]]], *, reached: bool) -> list[dict[str, Any]]:
        """`reached`: the node has answered before, so silence now is a fault and not a wrong address."""
        failures = 0
        while True:
            try:
                return attempt()
            except (Refused, Unreachable) as failure:
                if failures >= self.retries_max or not _may_pass(failure, reached=reached):
                    raise
                self._sleep(backoff_s(failures, _retry_after_s(failure)))
                failures += 1
                self.resent += 1


def backoff_s(failures: int, at_least_s: float = 0.0) -> float:
    """Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"): clients cut off together do not return together."""
    ceiling = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**failures)
    return min(BACKOFF_MAX_S, at_least_s) + random.uniform(0, ceiling)  # noqa: S311  spreads load, guards nothing


def unreachable(connection: Connection, error: BaseException) -> Unreachable:
    """What kept us from an answer, with what to do about the kinds people meet."""
    reason = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        what = (
            "give the node's CA file by --ca (a development node keeps it in its home), and use a name that its certificate holds"
        )
    elif "Connection refused" in reason or "Errno 111" in reason or "ConnectError" in reason:
        what = "is the node running? `sprawl serve` starts one; give its address by --url"
    else:
        what = "check --url and the network between here and there"
    return Unreachable(f"no answer from {connection.url}", reason, what)


def _may_pass(failure: Refused | Unreachable, *, reached: bool) -> bool:
    if isinstance(failure, Unreachable):
        return reached
    return failure.problem.get("status") in (429, 503)


def _retry_after_s(failure: Refused | Unreachable) -> float:
    wait_ms = failure.problem.get("retry_after_ms") if isinstance(failure, Refused) else None
    return wait_ms / 1_000 if isinstance(wait_ms, int | float) and wait_ms > 0 else 0.0


def _read_whole(answer: httpx.Response) -> bytes:
    content = bytearray()
    for chunk in answer.iter_bytes():
        content += chunk
        if len(content) > ANSWER_BYTES_MAX:
            raise Refused({"status": answer.status_code, "title": f"the answer is larger than {ANSWER_BYTES_MAX} bytes"})
    return bytes(content)


def _refused(answer: httpx.Response, content: bytes) -> Refused:
    try:
        problem = msgspec.json.decode(content)
    except msgspec.DecodeError:
        problem = None
    if not isinstance(problem, dict):
        detail = content[:200].decode("utf-8", "replace")
        problem = {"title": f"HTTP {answer.status_code} {answer.reason_phrase}", "detail": detail}
    return Refused({"status": answer.status_code, **problem}, answer.headers.get("X-Request-Id"))


def _parse(status: int, content: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise Refused(
            {"status": status, "title": "the answer is not understood: is this a Sprawl node?", "detail": str(error)}
        ) from None
