"""The table of operations. The router is made of it, and so is the OpenAPI document: neither knows a path the other does not.

    found = {200: Answer("The topic", {"application/json": TopicAnswer})}
    Operation("GET", "/v1/topics/{topic}", self.describe, "describe_topic", "One topic", found, parameters=(TOPIC,))

A handler is `async def describe(self, exchange, topic)`: the exchange, then the path's values in their order. It answers through
the exchange, or raises what `gateway/errors.py` knows. HEAD comes with every GET, OPTIONS with every path. A query parameter that
the row does not name is refused before the handler runs, so no handler can have one that the document keeps to itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec

Handler: TypeAlias = Callable[..., Awaitable[None]]
Schema: TypeAlias = Mapping[str, Any]
"""A JSON schema (2020-12), as OpenAPI 3.1 has them."""
Kinds: TypeAlias = Mapping[str, Any]
"""Media type -> the type decoded or encoded there (a msgspec struct, a list of it ...), or a schema, in which types may stand."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
TAIL = "..."

TEXT: Schema = MappingProxyType({"type": "string"})


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """`name` as it is in the path, the query or the header."""

    name: str
    about: str
    place: Literal["path", "query", "header"] = "query"
    schema: Schema = TEXT
    required: bool = False


class Alternatives(msgspec.Struct, frozen=True, kw_only=True):
    """Query parameters of which one form may be given, or none: all parameters of the form, and nothing of the others.

    In the document it is one parameter, an object whose members are written as parameters of their own (`form`, `explode`):
    OpenAPI 3.1 has no other way to say it.
    """

    name: str
    about: str
    forms: Sequence[Sequence[Parameter]]


class Body(msgspec.Struct, frozen=True):
    about: str
    kinds: Kinds
    required: bool = True


class Answer(msgspec.Struct, frozen=True):
    """`headers`: name -> what it says; those without a body have no `kinds`."""

    about: str
    kinds: Kinds = {}
    headers: Mapping[str, str] = {}


class Operation(msgspec.Struct, frozen=True):
    """One row.

    `name` is the id in the document, `refusals` the errors beyond those that every operation may end with. `open` ones
    are answered without asking who it is. `protocol` and `label` are labels of the metrics; `timed` is False where the client
    decides how long it takes. `values` turns the path's raw segments into the handler's arguments.
    """

    method: str
    path: str
    handler: Handler
    name: str
    summary: str
    answers: Mapping[int, Answer]
    tag: str = "node"
    about: str = ""
    parameters: Sequence[Parameter | Alternatives] = ()
    body: Body | None = None
    refusals: Sequence[type[Exception]] = ()
    open: bool = False
    protocol: str = "rest"
    label: str = "administer"
    timed: bool = True
    values: Callable[[Sequence[bytes]], tuple[Any, ...]] = lambda segments: tuple(map(text_of, segments))

    def query_names(self) -> frozenset[str]:
        return frozenset(parameter.name for parameter in self.all_parameters() if parameter.place == "query")

    def all_parameters(self) -> Iterator[Parameter]:
        """Those within alternatives as well."""
        for parameter in self.parameters:
            if isinstance(parameter, Parameter):
                yield parameter
            else:
                yield from (one for form in parameter.forms for one in form)


class Route(msgspec.Struct, frozen=True):
    """An operation as the router finds it; `query_names` is what its query may hold."""

    operation: Operation
    query_names: frozenset[str]


class Methods(dict[str, Route]):
    """What is possible at one path, by method, in the order of METHODS."""


class TableInvalid(ValueError):
    """Two rows contradict each other, or one itself: a mistake of ours, found at the start."""


class _Step:
    """A place in the tree of paths: the next segment is one of the literals, or a value, or all that is left is one value."""

    __slots__ = ("literals", "methods", "tail", "value")

    def __init__(self) -> None:
        self.literals: dict[bytes, _Step] = {}
        self.value: _Step | None = None
        self.tail: _Step | None = None
        self.methods: Methods | None = None


class Router:
    """Paths are split before they are decoded, so that a value may hold any byte (`%2F`, `%FF`). Only a tail may be empty."""

    def __init__(self, operations: Sequence[Operation], options: Callable[[Sequence[str]], Handler]) -> None:
        """`options(methods)` makes the handler of a path's OPTIONS. Raises TableInvalid."""
        self.operations = tuple(operations)
        self._root = _Step()
        self._places: dict[str, Methods] = {}
        names: set[str] = set()
        for operation in operations:
            if operation.name in names:
                raise TableInvalid(f"two operations are called {operation.name}")
            names.add(operation.name)
            self._add(operation)
        for path, methods in self._places.items():
            self._complete(path, methods, options)

    def find(self, raw_path: bytes) -> tuple[Methods | None, list[bytes]]:
        """The methods of the path and its values, percent-encoded still."""
        step = self._root
        values: list[bytes] = []
        segments = raw_path.split(b"/")
        if segments[0]:
            return None, values
        for number, segment in enumerate(segments[1:], 1):
            following = step.literals.get(segment)
            if following is None:
                if step.tail is not None:
                    values.append(b"/".join(segments[number:]))
                    return step.tail.methods, values
                if step.value is None or not segment:
                    return None, values
                following = step.value
                values.append(segment)
            step = following
        return step.methods, values

    def paths(self) -> Mapping[str, Methods]:
        """Every path as the table writes it, with all of its methods."""
        return self._places

    def _add(self, operation: Operation) -> None:
        step = self._root
        for segment in operation.path.split("/")[1:]:
            if segment.startswith("{"):
                if step.literals:
                    raise TableInvalid(f"{operation.path}: {segment} stands beside literals, which no value could be called")
                if segment.endswith(TAIL + "}"):
                    step.tail = step = step.tail or _Step()
                else:
                    step.value = step = step.value or _Step()
            else:
                if step.value is not None or step.tail is not None:
                    raise TableInvalid(f"{operation.path}: {segment} stands beside a value, which then could not be called so")
                step = step.literals.setdefault(segment.encode("ascii"), _Step())
        if step.methods is None:
            step.methods = self._places[operation.path] = Methods()
        elif operation.path not in self._places:
            raise TableInvalid(f"{operation.path} is another path already, with other names for its values")
        if operation.method not in METHODS or operation.method in step.methods:
            raise TableInvalid(f"{operation.method} {operation.path} is no method, or there twice")
        step.methods[operation.method] = Route(operation, operation.query_names())

    def _complete(self, path: str, methods: Methods, options: Callable[[Sequence[str]], Handler]) -> None:
        found = dict(methods)
        if "GET" in found:
            found["HEAD"] = found["GET"]
        allowed = [method for method in METHODS if method in found or method == "OPTIONS"]
        some = next(iter(methods.values())).operation
        answer = Answer("The methods of this path", {}, {"Allow": "the methods"})
        found["OPTIONS"] = Route(
            Operation(
                "OPTIONS",
                path,
                options(allowed),
                f"options_of_{some.name}",
                "What is possible here",
                {204: answer},
                tag=some.tag,
                parameters=[_anything(parameter) for parameter in some.all_parameters() if parameter.place == "path"],
                open=True,
                label="options",
                values=some.values,
            ),
            frozenset(),
        )
        methods.clear()
        methods.update({method: found[method] for method in allowed})


def _anything(parameter: Parameter) -> Parameter:
    """OPTIONS looks at no value."""
    return msgspec.structs.replace(parameter, schema={"type": "string", "minLength": 1})


def text_of(segment: bytes) -> str:
    """A path segment. Bytes that are no UTF-8 stay visible as such, and no topic or partition has a name with them."""
    return (unquote_to_bytes(segment) if b"%" in segment else segment).decode("utf-8", "backslashreplace")
