"""One request: who asks, what the handler answers, and what becomes of what it raises.

A quota on requests that is used up holds the request back, and the answer says for how long: that is how Kafka's clients know it
(KIP-13; those of today wait as long again, KIP-219). Nothing was done before the quota was asked, so the handler runs again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Answer, Operation, Reply
from gateway.endpoints.kafka.refusal import Refusal
from gateway.errors import ClientGone, kafka_error
from gateway.wire.kafka import messages
from gateway.wire.kafka.errors import MessageInvalid
from security.errors import IdentityProblem, QuotaExceeded

PROTOCOL = "kafka"


class Ended(Exception):
    """The connection has to end; `reason` is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


async def serve(call: Call, operation: Operation, body: memoryview) -> list[Any]:
    """The answer's pieces, none where the client wants no answer. Raises Ended."""
    loop, metrics = asyncio.get_running_loop(), call.node.metrics
    began, outcome = loop.time(), "ok"
    try:
        if not operation.open:
            call.identified(await call.connection.authentication.required())
        request = body if operation.raw else messages.decode(call.api, call.version, body)
        return framed(call, await _handled(call, operation, request))
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    except MessageInvalid as refusal:
        outcome = "refused"
        raise Ended("request-malformed", str(refusal)) from None
    except IdentityProblem as refusal:
        outcome = "refused"
        raise Ended("unauthenticated", str(refusal)) from None
    except Exception as error:
        outcome = "failed"
        return framed(call, _failed(call, error))
    finally:
        metrics.requests_total.labels(PROTOCOL, operation.name, outcome).inc()
        if not operation.waits:
            metrics.request_seconds.labels(PROTOCOL, operation.name).observe(loop.time() - began)


async def _handled(call: Call, operation: Operation, request: Any) -> Answer:
    waited_ms, waits_max_ms = 0, call.node.options.throttle_ms_max
    while True:
        try:
            answer = await operation.handle(call, request)
        except QuotaExceeded as quota:
            if waited_ms >= waits_max_ms:
                raise
            wait_ms = min(quota.retry_after_ms, waits_max_ms - waited_ms)
            await asyncio.sleep(wait_ms / 1_000)
            waited_ms += wait_ms
        else:
            return {**answer, "throttle_time": waited_ms} if waited_ms and isinstance(answer, Mapping) else answer


def framed(call: Call, answer: Answer) -> list[Any]:
    """With its length and header, to be written as it is."""
    if answer is None:
        return []
    body = answer.parts if isinstance(answer, Reply) else [messages.encode(call.api, call.version, answer)]
    head = messages.response_head(call.api, call.version, call.correlation_id)
    size = len(head) + sum([len(part) for part in body])
    return [size.to_bytes(4, "big") + head, *body]


def _failed(call: Call, error: Exception) -> Answer:
    """What no handler has put in its own words. Where the answer has no place for it, the connection ends."""
    code, message = (error.code, error.message) if isinstance(error, Refusal) else kafka_error(error, call.request_id)
    if isinstance(error, ClientGone) or not messages.has_error_code(call.api, call.version):
        raise Ended("failed", f"{messages.api_name(call.api)}: {message}") from None
    told = {"error_code": code}
    return told | {"error_message": message} if messages.has_error_message(call.api, call.version) else told
