"""The way through on a real engine: pipeline, HTTP application, and callers with tokens.

`door.call(...)` runs the ASGI application in process; `http` speaks to it over a real socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from broker.broker import Broker, BrokerOptions
from broker.delivery.consumer_options import DeliveryOptions
from broker.delivery.consumers import Consumers
from broker.engine.embedded import EmbeddedEngine
from broker.machine import MachineClock, MachineRandom
from gateway.endpoints.rest import RestApp
from gateway.endpoints.rest_options import RestOptions, SseOptions
from gateway.endpoints.send_buffers import SEND_BUFFERS_BYTES_MAX, SendBuffers
from gateway.listen.server import HttpServer, bind
from gateway.listen.tls import CertificateFiles, TlsContexts
from gateway.observe.metrics import Metrics
from gateway.pipeline import Incoming, Pipeline, PipelineOptions
from gateway.settings import LimitsSection, Listener
from security.certificates import CertificatePaths, ensure_development_ca
from security.identity.chain import BearerToken, Chain
from security.identity.tokens import TokenProvider, TokenStore
from security.policy.model import Scope
from security.policy.quotas import Quotas, RateLimit
from security.policy.rbac import PolicyEngine, policy_from_mapping
from security.principal import Session

ROLES: dict[str, Any] = {
    "creator": [{"actions": ["publish", "read", "describe", "create"], "topic": "*"}],
    "orders-reader": [{"actions": ["read", "describe"], "topic": "orders"}],
    "eu-reader": [{"actions": ["read"], "topic": "orders", "key": "eu/*"}],
    "eu-writer": [{"actions": ["publish"], "topic": "orders", "key": "eu/*"}],
    "token-maker": [{"actions": ["tokens"], "topic": "*"}],
}


class StoppedClock:
    """The machine's clock; `ahead_ms` moves the wall clock on, to let credentials end."""

    def __init__(self) -> None:
        self._clock = MachineClock()
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return self._clock.now_ms() + self.ahead_ms

    def monotonic_ms(self) -> int:
        return self._clock.monotonic_ms()


class Answer:
    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        self.status, self.body = status, body
        self.headers = {name.decode(): value.decode("latin-1") for name, value in headers}

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self.body
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json", (self.status, self.body)
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        assert document["instance"] == self.headers["x-request-id"]
        assert document["detail"]
        assert document["title"]
        return document

    @property
    def slug(self) -> str:
        found: str = self.problem["type"].removeprefix("/problems/")
        return found


class Call:
    """One request to the application, under way. `chunks` is the body as the client sends it; `leave()` closes the connection.

    `going` is whether it takes what is sent: as with uvicorn at its high-water mark, the next send waits until it does.
    `pause_at` clears that with the first piece of the body that holds this text.
    """

    pause_at: bytes | None = None

    def __init__(self, app: Any, scope: dict[str, Any], chunks: Sequence[bytes], *, complete: bool = True) -> None:
        self.scope = scope
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for number, chunk in enumerate(chunks):
            self.feed(chunk, last=complete and number == len(chunks) - 1)
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = False
        self.going = asyncio.Event()
        self.going.set()
        self.task = asyncio.create_task(app(scope, self._inbox.get, self._send))

    def feed(self, chunk: bytes, *, last: bool = False) -> None:
        self._inbox.put_nowait({"type": "http.request", "body": chunk, "more_body": not last})

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def _send(self, message: dict[str, Any]) -> None:
        await self.going.wait()
        assert not self.complete
        if message["type"] == "http.response.start":
            assert self.status == 0
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            assert self.status
            self.body += message.get("body", b"")
            if self.pause_at is not None and self.pause_at in message.get("body", b""):
                self.going.clear()
                self.pause_at = None
            self.complete = not message.get("more_body", False)

    async def answer(self) -> Answer:
        await self.task
        assert self.complete
        return Answer(self.status, self.headers, self.body)

    async def until(self, text: bytes) -> bytes:
        """Wait until the body so far holds `text`."""
        while text not in self.body:
            assert not self.task.done() or self.task.result() is None
            await asyncio.sleep(0.002)
        return self.body


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it holds; the test's own timeout ends it otherwise."""
    # Any state of the code under test: there is no event to wait for.
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


class Door:
    def __init__(
        self,
        engine: EmbeddedEngine,
        folder: Path,
        *,
        broker: BrokerOptions | None = None,
        pipeline: PipelineOptions | None = None,
        quotas: dict[str, RateLimit] | None = None,
        sse: SseOptions | None = None,
        send_buffers_bytes_max: int = SEND_BUFFERS_BYTES_MAX,
        delivery: DeliveryOptions | None = None,
        bindings: Sequence[Any] = (),
        **rest: Any,
    ) -> None:
        self.engine, self.clock, self.metrics = engine, StoppedClock(), Metrics()
        self.store = TokenStore(folder / "tokens.json", self.clock.now_ms, os.urandom)
        self.policy = PolicyEngine(policy_from_mapping({"roles": ROLES, "bindings": list(bindings)}))
        self.audited: list[tuple[Any, ...]] = []
        self.consumers = Consumers(engine, self.clock, MachineRandom(), delivery)
        self.until = until
        self.pipeline = Pipeline(
            Broker(engine, self.clock, broker or BrokerOptions(), self.consumers),
            self.policy,
            Chain([TokenProvider(self.store)]),
            Quotas(quotas or {}),
            SimpleNamespace(record=lambda *entry: self.audited.append(entry)),
            self.clock,
            self.metrics,
            pipeline or PipelineOptions(),
        )
        self.listener = Listener(port=0, plain=True)
        self.buffers = SendBuffers(send_buffers_bytes_max)
        self.app = RestApp(
            self.pipeline, self.metrics, RestOptions(**rest), sse or SseOptions(), self.store, buffers=self.buffers
        )
        self._tokens: dict[tuple[str, ...], str] = {}

    # Who

    def token(self, *roles: str, scopes: Sequence[str] | None = None, ttl_ms: int | None = None) -> str:
        parsed = None if scopes is None else [Scope.parse(scope) for scope in scopes]
        return self.store.create("test", roles or ("admin",), parsed, ttl_ms)[0]

    def admin(self) -> str:
        if () not in self._tokens:
            self._tokens[()] = self.token("admin")
        return self._tokens[()]

    async def session(self, *roles: str, token: str | None = None, **scoping: Any) -> Session:
        credential = BearerToken(token or self.token(*roles, **scoping))
        return await self.pipeline.identify(credential, peer="127.0.0.1:1", protocol="rest", listener=self.listener, id="s")

    def revoke(self, token: str) -> None:
        self.store.revoke(token.split("_")[1])

    def grant(self, roles: dict[str, Any]) -> None:
        """Another policy takes force: the usual roles, some of them replaced."""
        self.policy.replace(policy_from_mapping({"roles": ROLES | roles}))

    # What

    async def publish(self, topic: str, *records: tuple[str | None, str] | Incoming) -> None:
        """Beside the endpoint: (key, text) in one request."""
        incoming = [
            record
            if isinstance(record, Incoming)
            else Incoming(None if record[0] is None else record[0].encode(), record[1].encode())
            for record in records
        ]
        await self.pipeline.publish(await self.session(token=self.admin()), topic, incoming)

    def begin(
        self,
        method: str,
        target: str,
        body: bytes | Sequence[bytes] = b"",
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        complete: bool = True,
    ) -> Call:
        """`token` None is the admin's, "" sends none. A body given in chunks has no content-length."""
        path, _, query = target.partition("?")
        fields = {"host": "localhost"}
        if token != "":
            fields["authorization"] = f"Bearer {token or self.admin()}"
        if isinstance(body, bytes):
            fields["content-length"] = str(len(body))
        fields |= headers or {}
        scope = {
            "type": "http",
            "method": method,
            "path": httpx.URL("http://localhost" + path).path,
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()],
            "extensions": {"sprawl": {"peer": "127.0.0.1:1", "client_certificate": None, "listener": self.listener}},
        }
        return Call(self.app, scope, [body] if isinstance(body, bytes) else body, complete=complete)

    async def call(self, method: str, target: str, body: bytes | Sequence[bytes] = b"", **options: Any) -> Answer:
        return await self.begin(method, target, body, **options).answer()

    async def post(self, target: str, document: Any, **options: Any) -> Answer:
        """JSON; a list is posted as NDJSON where the content type says so."""
        headers = {"content-type": "application/json"} | options.pop("headers", {})
        return await self.call("POST", target, json.dumps(document).encode(), headers=headers, **options)

    async def get(self, target: str, **options: Any) -> Answer:
        return await self.call("GET", target, **options)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"sprawl_{name}", labels) or 0


OpenDoor = Callable[..., Door]


@pytest.fixture
def open_door(engine: EmbeddedEngine, tmp_path: Path) -> OpenDoor:
    """Makes the way through with the test's own bounds."""

    def make(**options: Any) -> Door:
        return Door(engine, tmp_path, **options)

    return make


@pytest.fixture
def door(open_door: OpenDoor) -> Door:
    return open_door()


@pytest.fixture(scope="session")
def own_ca(tmp_path_factory: pytest.TempPathFactory) -> CertificatePaths:
    return ensure_development_ca(tmp_path_factory.mktemp("certs"), [], datetime.now(UTC))


@pytest.fixture
async def http(door: Door, own_ca: CertificatePaths) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the door over TLS on a real socket, as admin."""
    listener = Listener(port=0)
    files = CertificateFiles(own_ca.server, own_ca.server_key, own_ca.ca)
    contexts = TlsContexts(files, "server", lambda: datetime.now(UTC), lambda outcome, expires_at_s: None)
    server = HttpServer(door.app, None, listener, contexts, LimitsSection(), door.metrics, door.app.direct)
    server.start(bind("http", listener))
    assert server.address is not None
    async with httpx.AsyncClient(
        base_url=f"https://localhost:{server.address[1]}",
        headers={"Authorization": f"Bearer {door.admin()}"},
        verify=ssl.create_default_context(cafile=str(own_ca.ca)),
        trust_env=False,
    ) as client:
        yield client
    door.app.drain()
    await server.drain(1_000)
