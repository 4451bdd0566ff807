"""The HTTP surface as one ASGI application: finds the route, asks who it is, runs it, says what went wrong.

What there is stands in one table (`gateway/endpoints/operations.py`): each part brings its rows, the router and the OpenAPI
document are made of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

from broker.topics.addresses import Address, parse_address
from gateway.endpoints.consumers import ConsumerRoutes
from gateway.endpoints.dead_letters import DeadLetterRoutes
from gateway.endpoints.direct import DirectPublish
from gateway.endpoints.docs_page import DocsRoutes
from gateway.endpoints.exchange import Bodies, Exchange, Receive, Scope, Send
from gateway.endpoints.filtered import FilteredRoutes
from gateway.endpoints.latest import LatestRoutes
from gateway.endpoints.openapi import OpenApiRoutes
from gateway.endpoints.operations import Handler, Operation, Router, text_of
from gateway.endpoints.origins import Origins, answer_preflight
from gateway.endpoints.publish import PublishRoutes
from gateway.endpoints.read import ReadRoutes
from gateway.endpoints.rest_options import RestOptions, SseOptions
from gateway.endpoints.send_buffers import SEND_BUFFERS_BYTES_MAX, SendBuffers
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


async def _nothing(exchange: Exchange) -> None:
    raise RouteUnknown


# What a request counts as until its operation is known.
_NOWHERE = Operation("GET", "", _nothing, "nowhere", "", {})


class RestApp:
    """`operations` join those of publishing, reading, topics and tokens."""

    def __init__(
        self,
        pipeline: Pipeline,
        metrics: Metrics,
        options: RestOptions,
        sse: SseOptions,
        tokens: TokenStore,
        operations: Sequence[Operation] = (),
        buffers: SendBuffers | None = None,
    ) -> None:
        self._pipeline, self._metrics = pipeline, metrics
        self._bodies = Bodies(options.bodies_bytes_max, options.compression_ratio_max, options.compress_bytes_min)
        self._origins = Origins(options.origins)
        self._polls = Watches("rest.waits_max", options.waits_max)
        self._streams = Watches("sse.streams_max", sse.streams_max)
        document = OpenApiRoutes(lambda: self.router)
        self.router = Router(
            [
                *PublishRoutes(pipeline, options).operations(address_of),
                *LatestRoutes(pipeline).operations(address_of),
                *ReadRoutes(pipeline, options, self._polls).operations(),
                *FilteredRoutes(pipeline, options, self._polls).operations(),
                *EventRoutes(pipeline, metrics, sse, self._streams, buffers or SendBuffers(SEND_BUFFERS_BYTES_MAX)).operations(),
                *TopicRoutes(pipeline).operations(),
                *TokenRoutes(pipeline, tokens).operations(),
                *ConsumerRoutes(pipeline).operations(),
                *DeadLetterRoutes(pipeline, options).operations(),
                *operations,
                *document.operations(),
                *DocsRoutes().operations(),
            ],
            _options,
        )

        self.direct = DirectPublish(pipeline, metrics, options, self._bodies, self.router)
        """Publishing without ASGI, for the listener."""

    def drain(self) -> None:
        """Long-polls answer with what there is, event streams end, and nothing waits from now on."""
        self._polls.drain()
        self._streams.drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"this application speaks http, not {scope['type']}")
        exchange = Exchange(scope, receive, send, self._bodies)
        request_id.set(exchange.id)  # each request runs in a task, and so in a context, of its own
        operation, outcome = _NOWHERE, "ok"
        began = time.perf_counter()
        try:
            methods, values = self.router.find(exchange.raw_path)
            if methods is None:  # told only to those who proved who they are
                exchange.session = await self._identify(exchange, "rest")
                raise RouteUnknown
            self._origins.check(exchange)
            route = methods.get(exchange.method)
            if route is None:
                raise MethodNotAllowed(exchange.method, tuple(methods))
            operation = route.operation
            if not operation.open:
                exchange.session = await self._identify(exchange, operation.protocol)
            if scope["query_string"]:
                exchange.query().only(route.query_names)
            await operation.handler(exchange, *operation.values(values))
        except Exception as error:
            outcome = translate(error).slug
            self._metrics.refused_total.labels(operation.protocol, outcome).inc()
            await exchange.refuse(error)
        finally:
            exchange.close()
            self._metrics.requests_total.labels(operation.protocol, operation.label, outcome).inc()
            if operation.timed:
                self._metrics.request_seconds.labels(operation.protocol, operation.label).observe(time.perf_counter() - began)

    async def _identify(self, exchange: Exchange, protocol: str) -> Session:
        known = exchange.connection
        return await self._pipeline.identify(
            exchange.credential(), peer=known["peer"], protocol=protocol, listener=known["listener"], id=exchange.id
        )


def _options(allowed: Sequence[str]) -> Handler:
    """Answered without asking who it is: the methods stand in the document, and browsers ask without credentials (Fetch, 4.8)."""
    header = ", ".join(allowed).encode("ascii")

    async def answer(exchange: Exchange, *_: Any) -> None:
        if not await answer_preflight(exchange, header):
            await exchange.begin(HTTPStatus.NO_CONTENT, [(b"allow", header)])
            await exchange.write(b"", last=True)

    return answer


def address_of(segments: Sequence[bytes]) -> tuple[Address]:
    """`topic`, `topic/` (the empty key) or `topic/key`; see `broker.topics.addresses` for keys under `$key/`."""
    topic = text_of(segments[0])
    if len(segments) == 1:
        return (Address(topic, None),)
    whole = unquote_to_bytes(segments[1])
    try:
        return (Address(topic, parse_address(f"topic/{whole.decode()}").key),)
    except UnicodeDecodeError:
        return (Address(topic, whole),)
