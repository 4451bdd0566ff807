"""One HTTP request and its answer, straight on ASGI: publish and read pay for nothing that they do not use."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

import msgspec
import uuid_utils

from gateway.endpoints.compression import Inflater, choose, compress, compressible
from gateway.endpoints.query import Query
from gateway.errors import BodyTooLarge, Busy, ClientGone, answer_headers, problem, translate
from gateway.pipeline import RETRY_AFTER_MS
from security.identity.chain import BearerToken, ClientCertificate, Credential, NoCredential
from security.principal import Session

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
HeaderList: TypeAlias = Iterable[tuple[bytes, bytes]]

JSON = b"application/json"
NDJSON = b"application/x-ndjson"
PROBLEM = b"application/problem+json"

NO_STORE = (b"cache-control", b"no-store")
VARY_CODING = (b"vary", b"accept-encoding")
THREAD_BYTES = 256 * 1024  # from here on compressing takes milliseconds: the loop has others to serve
LARGE_BYTES = 64 * 1024  # uvicorn's high-water mark: below it an answer has left, as far as the application can tell

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_LENGTH = re.compile(rb"[0-9]{1,19}")

encode = msgspec.json.Encoder().encode


class Bodies:
    """Bytes that all requests together hold, as bodies that came and large answers that have not left.

    `ratio_max` bounds how much compressed bodies grow; answers are compressed from `compress_bytes_min` on.
    """

    def __init__(self, bytes_max: int, ratio_max: int = 200, compress_bytes_min: int = 16 * 1024) -> None:
        self.bytes_max, self.ratio_max, self.compress_bytes_min = bytes_max, ratio_max, compress_bytes_min
        self.held_bytes = 0

    def take(self, size: int) -> None:
        if self.held_bytes + size > self.bytes_max:
            raise Busy("rest.bodies_bytes_max", self.bytes_max, RETRY_AFTER_MS)
        self.held_bytes += size

    def give_back(self, size: int) -> None:
        self.held_bytes -= size


class Exchange:
    """`raw_path` is percent-encoded still; `headers` has the last of each name, in lower case."""

    __slots__ = (
        "_bodies",
        "_held_bytes",
        "_query",
        "_receive",
        "_send",
        "_session",
        "extra",
        "headers",
        "id",
        "method",
        "raw_path",
        "scope",
        "started",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, bodies: Bodies) -> None:
        self.scope, self._receive, self._send, self._bodies = scope, receive, send, bodies
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.id = self._request_id()
        self.started = False
        self._held_bytes = 0
        self._session: Session | None = None
        self._query: Query | None = None
        self.extra: list[tuple[bytes, bytes]] = []  # headers that the answer has whatever it is

    @property
    def session(self) -> Session:
        """Who asks; set once, before any route runs."""
        assert self._session is not None
        return self._session

    @session.setter
    def session(self, session: Session) -> None:
        self._session = session

    @property
    def connection(self) -> dict[str, Any]:
        """What the listener knows: `peer`, `client_certificate`, `listener`."""
        found: dict[str, Any] = self.scope["extensions"]["sprawl"]
        return found

    # The request

    async def send(self, message: Message) -> None:
        """The request's id goes with every answer."""
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message["headers"], *self.extra, (b"x-request-id", self.id.encode())]
        await self._send(message)

    def credential(self) -> Credential:
        """The bearer token if there is an Authorization header, else the client certificate, else none."""
        return credential_of(self.headers.get(b"authorization"), self.connection["client_certificate"])

    def query(self) -> Query:
        """The parameters that nobody took yet."""
        if self._query is None:
            self._query = Query(self.scope["query_string"])
        return self._query

    def accepts(self, media_type: bytes) -> bool:
        """Named in Accept as it stands; no weighing, since every route has one default."""
        return media_type in self.headers.get(b"accept", b"").lower()

    async def body(self, bytes_max: int) -> bytes:
        """The whole body, unpacked where it comes compressed. BodyTooLarge before more than that is held, Busy, ClientGone."""
        length = self.headers.get(b"content-length", b"")
        if _LENGTH.fullmatch(length) and int(length) > bytes_max:
            raise BodyTooLarge("rest.body_bytes_max", bytes_max)
        coding = self.headers.get(b"content-encoding", b"identity")
        if coding != b"identity":
            return await self._inflated(Inflater(coding, self._bodies.ratio_max), bytes_max)
        whole = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            if len(whole) + len(part) > bytes_max:
                raise BodyTooLarge("rest.body_bytes_max", bytes_max)
            self._hold(len(part))
            if not message.get("more_body", False):
                return bytes(whole) + part if whole else part
            whole += part

    async def _inflated(self, inflater: Inflater, bytes_max: int) -> bytes:
        """What came is dropped as it is unpacked: what it becomes is held, never more of it than `bytes_max` and one piece."""
        whole, came, more = bytearray(), 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            came += len(part)
            for piece in inflater.pieces(part):
                if max(came, len(whole) + len(piece)) > bytes_max:
                    raise BodyTooLarge("rest.body_bytes_max", bytes_max)
                self._hold(len(piece))
                whole += piece
            more = message.get("more_body", False)
        inflater.finish()
        return bytes(whole)

    async def gone(self) -> None:
        """Returns when the client has closed the connection; whatever else it still sends is dropped."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # The answer

    async def answer(self, status: int, media_type: bytes, body: bytes, headers: HeaderList = ()) -> None:
        """The whole answer at once. A large one counts as held until it has left; Busy where that is too much."""
        fields = [(b"content-type", media_type), *headers]
        if len(body) >= self._bodies.compress_bytes_min and compressible(media_type) and not _settled(fields):
            body = await self._compressed(body, fields)
        large = len(body) > LARGE_BYTES
        if large:
            self._hold(len(body))
        await self.begin(status, [*fields, (b"content-length", b"%d" % len(body))])
        await self.write(body, last=not large)
        if large:
            await self.write(b"", last=True)

    async def _compressed(self, body: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
        """As the caller accepts it; adds to the headers. (Secrets are never compressed: their answers are not to be stored.)"""
        fields.append(VARY_CODING)
        coding = choose(self.headers.get(b"accept-encoding", b""))
        if coding is None:
            return body
        fields.append((b"content-encoding", coding))
        if len(body) < THREAD_BYTES:
            return compress(coding, body)
        return await asyncio.to_thread(compress, coding, body)

    async def begin(self, status: int, headers: HeaderList) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, *, last: bool = False) -> None:
        """Returns when the transport wants more; with an empty body it waits for that and writes nothing."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def refuse(self, error: Exception) -> None:
        """The problem document; nothing where nobody listens, or where an answer is under way, which then ends cut off."""
        document = problem(error, self.id)
        if not self.started and not isinstance(error, ClientGone):
            await self.answer(translate(error).status, PROBLEM, encode(document), answer_headers(error))

    def close(self) -> None:
        """Give back what was held."""
        self._bodies.give_back(self._held_bytes)
        self._held_bytes = 0

    def _hold(self, size: int) -> None:
        self._bodies.take(size)
        self._held_bytes += size

    def _request_id(self) -> str:
        given = self.headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode("ascii")
        return str(uuid_utils.uuid7())


def _settled(fields: HeaderList) -> bool:
    """Whether an answer stays as it is: its coding was chosen already, or it holds what nobody may keep."""
    return any(field in (NO_STORE, VARY_CODING) for field in fields)


def credential_of(authorization: bytes | None, certificate: bytes | None) -> Credential:
    """The bearer token if there is an Authorization header, else the client certificate, else none."""
    if authorization is not None:
        scheme, _, token = authorization.partition(b" ")
        # RFC 9110, 11.1: the scheme's case does not matter. Another scheme is a credential that nobody here recognises.
        text = token.strip() if scheme.lower() == b"bearer" else b""
        return BearerToken(text.decode("ascii", "replace"))
    return NoCredential() if certificate is None else ClientCertificate(certificate)
