"""About the node itself: /livez and /readyz for whoever asks, /metrics and /v1/node for who may see the figures."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.endpoints.documents import answer_document, exchange_of
from gateway.observe.health import Health
from gateway.observe.metrics import CONTENT_TYPE, Metrics
from gateway.pipeline import Pipeline
from security.policy.model import Action

# Answers about this moment are of no use in the next.
NO_STORE = {"cache-control": "no-store"}
OK, UNAVAILABLE = 200, 503


class NodeRoutes:
    """`describe` returns what `/v1/node` says, as JSON can say it."""

    def __init__(self, pipeline: Pipeline, metrics: Metrics, health: Health, describe: Callable[[], object]) -> None:
        self._pipeline, self._metrics, self._health, self._describe = pipeline, metrics, health, describe

    def open_routes(self) -> list[BaseRoute]:
        """Without credentials: orchestrators have none. They learn no more than that it works, or which part does not."""
        return [Route("/livez", self.alive, methods=["GET"]), Route("/readyz", self.ready, methods=["GET"])]

    def routes(self) -> list[BaseRoute]:
        return [Route("/metrics", self.metrics, methods=["GET"]), Route("/v1/node", self.node, methods=["GET"])]

    async def alive(self, request: Request) -> Response:
        return answer_document(OK, {"status": "alive"}, NO_STORE)

    async def ready(self, request: Request) -> Response:
        problems = self._health.problems()
        if problems:
            return answer_document(UNAVAILABLE, {"status": "not ready", "problems": problems}, NO_STORE)
        return answer_document(OK, {"status": "ready"}, NO_STORE)

    async def metrics(self, request: Request) -> Response:
        self._pipeline.require(exchange_of(request).session, Action.METRICS, "see the metrics")
        return Response(self._metrics.render(), OK, {**NO_STORE, "content-type": CONTENT_TYPE})

    async def node(self, request: Request) -> Response:
        self._pipeline.require(exchange_of(request).session, Action.METRICS, "see the node")
        return answer_document(OK, self._describe(), NO_STORE)
