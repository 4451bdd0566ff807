"""Publishing on the listener's direct path: what a head says is read once, then only bodies come.

The steps are those of the ASGI way, and the words too: the same pipeline, the same decoding, the same refusals. A head with
anything that this does not know (another header, a query) is left to the ASGI way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import uuid_utils

from broker.topics.addresses import Address
from gateway.endpoints.exchange import JSON, NDJSON, PROBLEM, Bodies, credential_of, encode
from gateway.endpoints.operations import Router
from gateway.endpoints.publish import published, put_key
from gateway.endpoints.records_json import read_records
from gateway.endpoints.rest_options import RestOptions
from gateway.errors import answer_headers, problem, translate
from gateway.observe.logs import request_id
from gateway.observe.metrics import Metrics
from gateway.pipeline import Pipeline
from security.errors import IdentityProblem
from security.principal import Principal, Session

PROTOCOL, OPERATION = "rest", "publish"

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

# As the listener takes it: status, media type, body, further headers, the request's id.
Reply: TypeAlias = Callable[[int, bytes, bytes, Headers, str], None]

# Headers that say nothing about publishing but what is read here.
_HEADERS = frozenset(
    (
        b"host",
        b"authorization",
        b"content-type",
        b"content-length",
        b"user-agent",
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"connection",
    )
)


class DirectPublish:
    """Prepares heads of publish requests. `bodies` is the bound that all requests of the application share."""

    def __init__(self, pipeline: Pipeline, metrics: Metrics, options: RestOptions, bodies: Bodies, router: Router) -> None:
        self.pipeline, self.metrics, self.options, self.bodies = pipeline, metrics, options, bodies
        self._router = router
        self.ok = metrics.requests_total.labels(PROTOCOL, OPERATION, "ok")
        self.seconds = metrics.request_seconds.labels(PROTOCOL, OPERATION)

    def prepare(self, method: bytes, url: bytes, headers: Headers, connection: Mapping[str, Any]) -> PreparedPublish | None:
        named = dict(headers)
        if method != b"POST" or b"?" in url or b"#" in url or len(named) != len(headers) or not _HEADERS.issuperset(named):
            return None
        if named.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None
        media_type = named.get(b"content-type")
        if media_type not in (JSON, NDJSON):
            return None
        methods, values = self._router.find(url)
        route = None if methods is None else methods.get("POST")
        if route is None or route.operation.label != OPERATION:
            return None
        [place] = route.operation.values(values)
        return PreparedPublish(self, place, media_type == NDJSON, named.get(b"authorization"), connection)


class PreparedPublish:
    """One head of one connection. Who sends it is proved with the first body, and looked at again with each further one."""

    __slots__ = ("_connection", "_credential", "_key", "_keyed", "_lines", "_principal", "_shared", "_topic")

    def __init__(
        self,
        shared: DirectPublish,
        place: str | Address,
        lines: bool,
        authorization: bytes | None,
        connection: Mapping[str, Any],
    ) -> None:
        self._shared = shared
        self._keyed = isinstance(place, Address)
        self._topic, self._key = (place.topic, place.key) if isinstance(place, Address) else (place, None)
        self._lines = lines
        self._connection = connection
        self._credential = credential_of(authorization, connection["client_certificate"])
        self._principal: Principal | None = None

    async def answer(self, body: bytes, reply: Reply) -> None:
        shared = self._shared
        began = time.perf_counter()
        id = str(uuid_utils.uuid7())
        request_id.set(id)
        size = 0
        try:
            session = await self._session(id)  # first: who has to wait for it holds nothing of the bound that all share
            shared.bodies.take(len(body))
            size = len(body)
            records = read_records(body, lines=self._lines, records_max=shared.options.records_max)
            del body  # what was decoded lives on in the batches only, while the log is waited for
            if self._keyed:
                put_key(records, self._key)
            try:
                receipts = await shared.pipeline.publish(session, self._topic, records)
            except IdentityProblem:
                await self._identify(id)  # says so again, and it is audited
                raise
            reply(200, JSON, published(receipts), (), id)
            shared.ok.inc()
        except Exception as error:
            row = translate(error)
            shared.metrics.refused_total.labels(PROTOCOL, row.slug).inc()
            shared.metrics.requests_total.labels(PROTOCOL, OPERATION, row.slug).inc()
            reply(row.status, PROBLEM, encode(problem(error, id)), answer_headers(error), id)
        finally:
            shared.bodies.give_back(size)
            shared.seconds.observe(time.perf_counter() - began)

    async def _session(self, id: str) -> Session:
        """A credential that was proved on this connection comes as the same bytes: only whether it still holds can change, and
        that is looked at wherever something is authorised."""
        if self._principal is None:
            return await self._identify(id)
        return Session(self._principal, self._connection["peer"], PROTOCOL, id)

    async def _identify(self, id: str) -> Session:
        known, self._principal = self._connection, None
        session = await self._shared.pipeline.identify(
            self._credential, peer=known["peer"], protocol=PROTOCOL, listener=known["listener"], id=id
        )
        self._principal = session.principal
        return session
