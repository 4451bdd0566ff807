"""The HTTP surface as one ASGI application: finds the route, asks who it is, runs it, says what went wrong.

Publish and read are called straight from here; starlette routes the rest. Paths are split before they are decoded, so a key may
hold any byte (`%2F`, `%FF`) and a topic no slash.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route, Router

from broker.topics.addresses import Address, parse_address
from gateway.endpoints.exchange import Bodies, Exchange, Receive, Scope, Send
from gateway.endpoints.publish import PublishRoutes
from gateway.endpoints.read import ReadRoutes
from gateway.endpoints.rest_options import RestOptions, SseOptions
from gateway.endpoints.sse import EventRoutes
from gateway.endpoints.tokens import TokenRoutes
from gateway.endpoints.topics import TopicRoutes
from gateway.endpoints.watch import Watches
from gateway.errors import MethodNotAllowed, RouteUnknown, translate
from gateway.observe.logs import request_id
from gateway.observe.metrics import Metrics
from gateway.pipeline import Pipeline
from security.identity.tokens import TokenStore
from security.principal import Session

Handler: TypeAlias = Callable[..., Awaitable[None]]

RECORDS = b"/v1/records/"
TOPICS = b"/v1/topics/"


class Operation(msgspec.Struct, frozen=True):
    """`protocol` and `name` are labels of the metrics; `timed` is False where the client decides how long it takes."""

    name: str
    handler: Handler
    protocol: str = "rest"
    timed: bool = True


Methods: TypeAlias = Mapping[str, Operation]


class RestApp:
    """`open_routes` are answered without asking who it is; `routes` join those of topics and tokens."""

    def __init__(
        self,
        pipeline: Pipeline,
        metrics: Metrics,
        options: RestOptions,
        sse: SseOptions,
        tokens: TokenStore,
        routes: Sequence[BaseRoute] = (),
        open_routes: Sequence[BaseRoute] = (),
    ) -> None:
        self._pipeline, self._metrics = pipeline, metrics
        self._bodies = Bodies(options.bodies_bytes_max)
        self._polls = Watches("rest.waits_max", options.waits_max)
        self._streams = Watches("sse.streams_max", sse.streams_max)
        publish = PublishRoutes(pipeline, options)
        read = ReadRoutes(pipeline, options, self._polls)
        events = EventRoutes(pipeline, metrics, sse, self._streams)
        self._of_topic = _methods(Operation("read", read.topic), Operation("publish", publish.to_topic))
        self._of_partition = _methods(Operation("read", read.partition))
        self._of_address = _methods(Operation("latest", read.latest), Operation("publish", publish.to_address))
        self._of_events = _methods(Operation("events", events.events, "sse", timed=False))
        self._administer = Operation("administer", self._route)
        self._open_routes = tuple(open_routes)
        self._routes = [*open_routes, *TopicRoutes(pipeline).routes(), *TokenRoutes(pipeline, tokens).routes(), *routes]
        self._router = Router(self._routes, redirect_slashes=False)

    def drain(self) -> None:
        """Long-polls answer with what there is, event streams end, and nothing waits from now on."""
        self._polls.drain()
        self._streams.drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"this application speaks http, not {scope['type']}")
        exchange = Exchange(scope, receive, send, self._bodies)
        request_id.set(exchange.id)  # each request runs in a task, and so in a context, of its own
        operation, outcome = self._administer, "ok"
        began = time.perf_counter()
        try:
            methods, arguments = self._find(exchange.raw_path)
            if methods is not None:
                operation = _operation(methods, exchange.method)
                exchange.session = await self._identify(exchange, operation.protocol)
            await operation.handler(exchange, *arguments)
        except Exception as error:
            outcome = translate(error).slug
            self._metrics.refused_total.labels(operation.protocol, outcome).inc()
            await exchange.refuse(error)
        finally:
            exchange.close()
            self._metrics.requests_total.labels(operation.protocol, operation.name, outcome).inc()
            if operation.timed:
                self._metrics.request_seconds.labels(operation.protocol, operation.name).observe(time.perf_counter() - began)

    async def _identify(self, exchange: Exchange, protocol: str) -> Session:
        known = exchange.connection
        return await self._pipeline.identify(
            exchange.credential(), peer=known["peer"], protocol=protocol, listener=known["listener"], id=exchange.id
        )

    def _find(self, raw_path: bytes) -> tuple[Methods | None, tuple[Any, ...]]:
        """The hot routes by hand: starlette's regular expressions cost as much as the rest of a small publish."""
        if raw_path.startswith(RECORDS):
            return self._of_address, (_address(raw_path[len(RECORDS) :]),)
        if raw_path.startswith(TOPICS):
            match raw_path[len(TOPICS) :].split(b"/"):
                case [topic, b"records"]:
                    return self._of_topic, (_text(topic),)
                case [topic, b"partitions", partition, b"records"]:
                    return self._of_partition, (_text(topic), _text(partition))
                case [topic, b"events"]:
                    return self._of_events, (_text(topic),)
        return None, ()

    async def _route(self, exchange: Exchange) -> None:
        """By starlette. A path that is nowhere is told so only to those who proved who they are."""
        scope = exchange.scope
        if not any(route.matches(scope)[0] is not Match.NONE for route in self._open_routes):
            exchange.session = await self._identify(exchange, "rest")
        allowed = self._allowed(scope)
        if exchange.method == "OPTIONS" and allowed:
            await _answer_options(exchange, allowed=allowed)
            return
        scope["sprawl.exchange"], scope["app"] = exchange, self  # with an app starlette raises its refusals
        try:
            await self._router(scope, exchange.receive, exchange.send)
        except HTTPException as refusal:
            if refusal.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
                raise MethodNotAllowed(exchange.method, allowed) from None
            if refusal.status_code == HTTPStatus.NOT_FOUND:
                raise RouteUnknown from None
            raise

    def _allowed(self, scope: Scope) -> list[str]:
        """All methods of the path; starlette's own answer names those of one route."""
        found = [
            route.methods or ()
            for route in self._routes
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE
        ]
        return sorted({method for methods in found for method in methods} | {"OPTIONS"}) if found else []


def _methods(read: Operation, post: Operation | None = None) -> Methods:
    methods = {"GET": read, "HEAD": read}
    if post is not None:
        methods["POST"] = post
    methods["OPTIONS"] = Operation("options", functools.partial(_answer_options, allowed=(*methods, "OPTIONS")))
    return methods


def _operation(methods: Methods, method: str) -> Operation:
    found = methods.get(method)
    if found is None:
        raise MethodNotAllowed(method, tuple(methods))
    return found


async def _answer_options(exchange: Exchange, *_: object, allowed: Sequence[str]) -> None:
    await exchange.begin(HTTPStatus.NO_CONTENT, [(b"allow", ", ".join(allowed).encode("ascii"))])
    await exchange.write(b"", last=True)


def _text(segment: bytes) -> str:
    """A path segment. Bytes that are no UTF-8 stay visible as such, and no topic or partition has a name with them."""
    return (unquote_to_bytes(segment) if b"%" in segment else segment).decode("utf-8", "backslashreplace")


def _address(path: bytes) -> Address:
    """`topic`, `topic/` (the empty key) or `topic/key`; see `broker.topics.addresses` for keys under `$key/`."""
    topic, slash, key = path.partition(b"/")
    whole = unquote_to_bytes(key)
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        return Address(_text(topic), whole)
    return Address(_text(topic), parse_address(f"topic/{text}").key if slash else None)
