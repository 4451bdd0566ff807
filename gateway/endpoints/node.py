"""About the node itself: /livez and /readyz for whoever asks, /metrics and /v1/node for who may see the figures."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gateway.endpoints.documents import answer_document
from gateway.endpoints.exchange import NO_STORE, Exchange
from gateway.endpoints.operations import Answer, Operation
from gateway.observe.health import Health
from gateway.observe.metrics import CONTENT_TYPE, Metrics
from gateway.pipeline import Pipeline
from security.policy.model import Action

# Answers about this moment are of no use in the next.
UNSTORED = [NO_STORE]
OK, UNAVAILABLE = 200, 503


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """`problems` names the parts that do not work."""

    status: str
    problems: dict[str, str] = {}


class NodeRoutes:
    """`describe` returns what `/v1/node` says, as JSON can say it."""

    def __init__(self, pipeline: Pipeline, metrics: Metrics, health: Health, describe: Callable[[], object]) -> None:
        self._pipeline, self._metrics, self._health, self._describe = pipeline, metrics, health, describe

    def operations(self) -> list[Operation]:
        json = "application/json"
        return [
            # Without credentials: orchestrators have none. They learn no more than that it works, or which part does not.
            Operation(
                "GET",
                "/livez",
                self.alive,
                "livez",
                "Whether the process answers",
                {200: Answer("It does", {json: State})},
                open=True,
            ),
            Operation(
                "GET",
                "/readyz",
                self.ready,
                "readyz",
                "Whether the node can serve",
                {200: Answer("It can", {json: State}), 503: Answer("It cannot", {json: State})},
                open=True,
            ),
            Operation(
                "GET",
                "/metrics",
                self.metrics,
                "metrics",
                "The figures, for Prometheus",
                {200: Answer("The metrics", {CONTENT_TYPE: {"type": "string"}})},
            ),
            Operation(
                "GET",
                "/v1/node",
                self.node,
                "describe_node",
                "Version, cluster, listeners",
                {200: Answer("About the node", {json: {"type": "object"}})},
            ),
        ]

    async def alive(self, exchange: Exchange) -> None:
        await answer_document(exchange, OK, State("alive"), UNSTORED)

    async def ready(self, exchange: Exchange) -> None:
        problems = self._health.problems()
        if problems:
            await answer_document(exchange, UNAVAILABLE, State("not ready", problems), UNSTORED)
        else:
            await answer_document(exchange, OK, State("ready"), UNSTORED)

    async def metrics(self, exchange: Exchange) -> None:
        self._pipeline.require(exchange.session, Action.METRICS, "see the metrics")
        await exchange.answer(OK, CONTENT_TYPE.encode("ascii"), self._metrics.render(), UNSTORED)

    async def node(self, exchange: Exchange) -> None:
        self._pipeline.require(exchange.session, Action.METRICS, "see the node")
        await answer_document(exchange, OK, self._describe(), UNSTORED)
