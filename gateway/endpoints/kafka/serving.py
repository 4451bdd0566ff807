"""One request: who asks, what the handler answers, and what becomes of what it raises.

A quota on requests that is used up holds the request back, and the answer says for how long: that is how Kafka's clients know it
(KIP-13; those of today wait as long again, KIP-219). Nothing was done before the quota was asked, so the handler runs again.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Answer, Later, Operation, Reply
from gateway.endpoints.kafka.refusal import Refusal
from gateway.errors import ClientGone, kafka_error
from gateway.wire.kafka import messages
from gateway.wire.kafka.errors import MessageInvalid
from security.errors import IdentityProblem, QuotaExceeded

DECODED_HERE_BYTES_MAX = 32 * 1024  # what is larger takes more than 10 ms, and is decoded beside the loop
JOINED_BYTES_MAX = 4_096  # answers up to here are one piece with their header: a copy costs less than a second buffer

_HEAD = struct.Struct(">Ii")  # length, correlation id
_FLEXIBLE_HEAD = struct.Struct(">IiB")  # and no tagged fields


class Ended(Exception):
    """The connection has to end; `reason` is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def begin(call: Call, operation: Operation, body: memoryview) -> list[Any] | Later | Coroutine[Any, Any, Answer]:
    """A raw request of somebody who is known: what its handler returned, or the answer's pieces. Raises Ended."""
    try:
        call.session = call.connection.authentication.current()
        answer: Any = operation.handle(call, body)
    except Exception as error:
        return refused(call, operation, error)
    if answer is None or type(answer) is Reply:
        return answered(call, operation, answer)
    coming: Later | Coroutine[Any, Any, Answer] = answer
    return coming


async def serve(call: Call, operation: Operation, body: memoryview) -> list[Any]:
    """The answer's pieces, none where the client wants no answer. Raises Ended."""
    return await awaited(call, operation, _handled(call, operation, body))


async def awaited(call: Call, operation: Operation, coming: Coroutine[Any, Any, Answer]) -> list[Any]:
    """The same for a handler that is under way."""
    try:
        return answered(call, operation, await coming)
    except asyncio.CancelledError:
        _count(call, operation, "cancelled")
        raise
    except Ended:
        raise
    except Exception as error:
        return refused(call, operation, error)


def answered(call: Call, operation: Operation, answer: Answer) -> list[Any]:
    """It is there: counted, and to be written as it is."""
    parts = framed(call, answer)
    counted, seconds = call.node.counted(operation.name, "ok")
    counted.value += 1
    if not operation.waits:
        seconds.observe(call.connection.now_s() - call.began_s)
    return parts


def refused(call: Call, operation: Operation, error: Exception) -> list[Any]:
    """What a handler raised. Raises Ended."""
    if isinstance(error, MessageInvalid):
        _count(call, operation, "refused")
        raise Ended("request-malformed", str(error)) from None
    if isinstance(error, IdentityProblem):
        _count(call, operation, "refused")
        raise Ended("unauthenticated", str(error)) from None
    _count(call, operation, "failed")
    return framed(call, _failed(call, error))


def _count(call: Call, operation: Operation, outcome: str) -> None:
    counted, seconds = call.node.counted(operation.name, outcome)
    counted.inc()
    if not operation.waits:
        seconds.observe(call.connection.now_s() - call.began_s)


async def _handled(call: Call, operation: Operation, body: memoryview) -> Answer:
    if not operation.open:
        call.session = await call.connection.authentication.required()
    if operation.raw:
        answer: Any = operation.handle(call, body)
        return answer if answer is None or type(answer) is Reply else await answer
    return await _decoded(call, operation.handle, await _request(call, body))


async def _request(call: Call, body: memoryview) -> Any:
    if len(body) > DECODED_HERE_BYTES_MAX:
        return await asyncio.to_thread(messages.decode, call.api, call.version, body)
    return messages.decode(call.api, call.version, body)


async def _decoded(call: Call, handle: Callable[[Call, Any], Any], request: Any) -> Answer:
    waited_ms, waits_max_ms = 0, call.node.options.throttle_ms_max
    while True:
        try:
            answer = await handle(call, request)
        except QuotaExceeded as quota:
            if waited_ms >= waits_max_ms:
                raise
            wait_ms = min(quota.retry_after_ms, waits_max_ms - waited_ms)
            await asyncio.sleep(wait_ms / 1_000)
            waited_ms += wait_ms
        else:
            return {**answer, "throttle_time": waited_ms} if waited_ms and isinstance(answer, Mapping) else answer


def framed(call: Call, answer: Answer) -> list[Any]:
    """With its length and header."""
    if answer is None:
        return []
    body = answer.parts if isinstance(answer, Reply) else [messages.encode(call.api, call.version, answer)]
    if len(body) == 1 and len(first := body[0]) <= JOINED_BYTES_MAX:
        if messages.flexible_answer(call.api, call.version):
            return [_FLEXIBLE_HEAD.pack(len(first) + 5, call.correlation_id, 0) + first]
        return [_HEAD.pack(len(first) + 4, call.correlation_id) + first]
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
