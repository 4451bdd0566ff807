"""GET /v1/openapi.json: the OpenAPI 3.1 document, written from the table of operations that the router runs.

Bodies and answers are described by the very types they are decoded into and encoded from, refusals by the rows of
`gateway/errors.py`: each operation names the problem types it may answer with, and no others. It is open to everybody: it holds
nothing that the source does not.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import msgspec

from broker import errors as broker
from gateway import errors as gateway
from gateway.endpoints.compression import choose, compress
from gateway.endpoints.conditional import NOT_MODIFIED, fresh
from gateway.endpoints.exchange import JSON, PROBLEM, VARY_CODING, Exchange, encode
from gateway.endpoints.operations import TAIL, Alternatives, Answer, Kinds, Operation, Parameter, Router
from gateway.errors import TABLE
from security import errors as security
from security.identity.token_file import TokenStoreDamaged

VERSION = "1"
"""Of the interface, as in its paths; which release serves it is said by /v1/node, to those who may ask."""

_REF = "#/components/schemas/{name}"

# What every operation may end with: the node's own troubles, and quotas.
ALWAYS: tuple[type[Exception], ...] = (
    gateway.Busy,
    gateway.Draining,
    gateway.OriginRefused,
    gateway.ParameterInvalid,
    broker.Closed,
)
# ... and every one that asks who it is.
IDENTIFIED: tuple[type[Exception], ...] = (
    security.IdentityProblem,
    security.LoginsThrottled,
    security.AccessDenied,
    security.QuotaExceeded,
    security.KeyProblem,
    security.TamperedData,
    broker.Unavailable,
    broker.StorageProblem,
    TokenStoreDamaged,
)
# What the listener answers before there is an operation (`gateway/listen/http.py`): status -> the problem's slug and title.
LISTENER: Mapping[int, Mapping[str, str]] = {
    400: {"request-malformed": "The request is malformed", "request-cut-off": "The request ended early"},
    408: {"head-timeout": "The request took too long", "body-timeout": "The request took too long"},
    421: {"host-refused": "The request names another host"},
    431: {"head-too-large": "The request's head is too large"},
    503: {"connections": "Too many connections", "pipelined": "Too many requests at once"},
}
_UNEXPECTED = gateway.UNEXPECTED

_TAGS = {
    "records": "Publish and read records.",
    "topics": "Make, describe, change and delete topics.",
    "tokens": "Access tokens, and what one's own credential amounts to.",
    "node": "The node itself.",
}

_ABOUT = """One log, reached over REST, Server-Sent Events and WebSocket (`/v1/ws`, which OpenAPI cannot describe).

Refusals are problem documents (RFC 9457): `type` names the problem, `detail` says what was wrong and what to do, `instance` is
the request's id. Every answer carries that id in `X-Request-Id`; a request may bring its own.

Integers in bodies are written without a fraction: 48, not 48.0."""


class Problem(msgspec.Struct):
    """A refusal (RFC 9457). Further members hold its facts: the topic, the limit, how long to wait."""

    type: str
    title: str
    status: int
    detail: str
    instance: str


class OpenApiRoutes:
    """`router` is asked for when the document is first wanted: the document's own row is in its table."""

    def __init__(self, router: Callable[[], Router]) -> None:
        self._router = router
        self._body = b""
        self._tag = b""
        self._packed: dict[bytes, bytes] = {}

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "GET",
                "/v1/openapi.json",
                self.document,
                "openapi",
                "This document",
                {
                    200: Answer("The OpenAPI document", {"application/json": {"type": "object"}}, {"ETag": "its version"}),
                    **NOT_MODIFIED,
                },
                open=True,
            )
        ]

    async def document(self, exchange: Exchange) -> None:
        if not self._body:
            self._body = encode(document(self._router()))
            self._tag = b'W/"%s"' % hashlib.sha256(self._body).hexdigest()[:32].encode("ascii")
        headers = [(b"cache-control", b"no-cache"), VARY_CODING]
        if await fresh(exchange, self._tag, headers=headers):
            return
        headers.append((b"etag", self._tag))
        coding = choose(exchange.headers.get(b"accept-encoding", b""))
        body = self._body
        if coding is not None:
            if coding not in self._packed:  # once, not for everybody who asks without proving who they are
                self._packed[coding] = compress(coding, body)
            body = self._packed[coding]
            headers.append((b"content-encoding", coding))
        await exchange.answer(200, JSON, body, headers)


def document(router: Router) -> dict[str, Any]:
    """Of all paths of the table, with all of their methods."""
    components = Components(router.operations)
    paths: dict[str, dict[str, Any]] = {}
    for path, methods in router.paths().items():
        paths[path.replace(TAIL + "}", "}")] = {
            method.lower(): _operation(method, route.operation, components) for method, route in methods.items()
        }
    tags = dict.fromkeys(operation.tag for operation in router.operations)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sprawl",
            "version": VERSION,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag, "description": _TAGS.get(tag, "")} for tag in tags],
        "security": [{"bearer": []}, {"certificate": []}],
        "paths": paths,
        "components": {
            "schemas": components.schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An access token: `sprawl tokens create`."},
                "certificate": {"type": "mutualTLS", "description": "A client certificate, where the listener asks for one."},
            },
        },
    }


class Components:
    """The schemas of all types in the table, by name."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        kinds: list[Kinds] = []
        for operation in operations:
            kinds += [answer.kinds for answer in operation.answers.values()]
            if operation.body is not None:
                kinds.append(operation.body.kinds)
        types = [Problem, *(_documentable(kind) for one in kinds for part in one.values() for kind in _types_in(part))]
        described, self.schemas = msgspec.json.schema_components(types, ref_template=_REF)
        self._of = {_key(kind): schema for kind, schema in zip(types, described, strict=True)}

    def schema(self, kind: Any) -> Any:
        """A schema as it is, but for the types in it."""
        match kind:
            case Mapping():
                return {name: self.schema(part) for name, part in kind.items()}
            case list() | tuple():
                return [self.schema(part) for part in kind]
            case str() | int() | float() | None:
                return kind
        return self._of[_key(_documentable(kind))]

    def content(self, kinds: Kinds) -> dict[str, Any]:
        return {media_type: {"schema": self.schema(kind)} for media_type, kind in kinds.items()}


def _operation(method: str, operation: Operation, components: Components) -> dict[str, Any]:
    head = method == "HEAD"
    described: dict[str, Any] = {
        "operationId": f"head_of_{operation.name}" if head else operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": _responses(operation, components, head=head),
    }
    if operation.about:
        described["description"] = operation.about
    if operation.parameters:
        described["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.body is not None:
        described["requestBody"] = {
            "description": operation.body.about,
            "required": operation.body.required,
            "content": components.content(operation.body.kinds),
        }
    if operation.open:
        described["security"] = []
    return described


def _parameter(parameter: Parameter | Alternatives) -> dict[str, Any]:
    if isinstance(parameter, Alternatives):
        return _alternatives(parameter)
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.about,
        "required": parameter.required or parameter.place == "path",
        "schema": dict(parameter.schema),
    }


def _alternatives(choice: Alternatives) -> dict[str, Any]:
    forms: list[dict[str, Any]] = [{"maxProperties": 0}]
    for form in choice.forms:
        members = {parameter.name: {**parameter.schema, "description": parameter.about} for parameter in form}
        forms.append({"properties": members, "required": list(members), "additionalProperties": False})
    return {
        "name": choice.name,
        "in": "query",
        "description": choice.about,
        "style": "form",
        "explode": True,
        "schema": {"type": "object", "anyOf": forms},
    }


def _responses(operation: Operation, components: Components, *, head: bool) -> dict[str, Any]:
    responses = {}
    for status, answer in operation.answers.items():
        responses[str(status)] = described = {"description": answer.about, "headers": _headers(answer.headers)}
        if answer.kinds and not head:
            described["content"] = components.content(answer.kinds)
    for status, problems in sorted(_problems(operation).items()):
        if str(status) in responses:
            continue  # said by the operation itself: it has another form there
        responses[str(status)] = {
            "description": "; ".join(dict.fromkeys(problems.values())),
            "headers": _headers(_PROBLEM_HEADERS.get(status, {})),
        }
        if not head:
            types = {"type": {"enum": sorted(f"/problems/{slug}" for slug in problems)}, "status": {"const": status}}
            schema = {"allOf": [components.schema(Problem), {"properties": types}]}
            responses[str(status)]["content"] = {PROBLEM.decode(): {"schema": schema}}
    return responses


_PROBLEM_HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"WWW-Authenticate": "how to prove who one is (RFC 6750)"},
    405: {"Allow": "the methods that are possible here"},
    429: {"Retry-After": "seconds to wait"},
    503: {"Retry-After": "seconds to wait"},
}


def _problems(operation: Operation) -> dict[int, dict[str, str]]:
    """Status -> slug -> title of everything that this operation may be refused with."""
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for status, listened in LISTENER.items():
        found[status].update(listened)
    found[_UNEXPECTED.status][_UNEXPECTED.slug] = _UNEXPECTED.title
    for refusal in (*ALWAYS, *(() if operation.open else IDENTIFIED), *operation.refusals):
        for kind, row in TABLE.items():
            if issubclass(kind, refusal):
                found[row.status][row.slug] = row.title
    return found


def _headers(headers: Mapping[str, str]) -> dict[str, Any]:
    known = {name: {"description": about, "schema": {"type": "string"}} for name, about in headers.items()}
    return {"X-Request-Id": {"description": "the request's id", "required": True, "schema": {"type": "string"}}} | known


def _types_in(kind: Any) -> Iterator[Any]:
    """The types that stand in a schema, or are one."""
    match kind:
        case Mapping():
            for part in kind.values():
                yield from _types_in(part)
        case list() | tuple():
            for part in kind:
                yield from _types_in(part)
        case str() | int() | float() | None:
            return
        case _:
            yield kind


def _documentable(kind: Any) -> Any:
    """msgspec describes any type but those with a default of `Raw`: there a twin stands in whose raw members are any JSON."""
    arguments = get_args(kind)
    if arguments:
        made = tuple(_documentable(argument) for argument in arguments)
        if made == arguments:
            return kind
        return Union[made] if get_origin(kind) in (Union, UnionType) else get_origin(kind)[made]  # noqa: UP007
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return kind
    fields = msgspec.structs.fields(kind)
    if not any(isinstance(field.default, msgspec.Raw) for field in fields):
        return kind
    return _twin(kind, fields)


_TWINS: dict[type, type] = {}


def _twin(kind: type[msgspec.Struct], fields: Sequence[msgspec.structs.FieldInfo]) -> type:
    if kind not in _TWINS:
        members: list[Any] = []
        for field in fields:
            raw = isinstance(field.default, msgspec.Raw)
            default = msgspec.UNSET if raw else field.default
            members.append((field.encode_name, Any if raw else field.type, default))
        config = kind.__struct_config__
        twin = msgspec.defstruct(kind.__name__, members, forbid_unknown_fields=config.forbid_unknown_fields)
        twin.__doc__ = kind.__doc__
        _TWINS[kind] = twin
    return _TWINS[kind]


def _key(kind: Any) -> Any:
    return kind if kind is not None else NoneType
