"""The table of operations: how paths are found, and what a table may not hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.endpoints.operations import Alternatives, Answer, Handler, Operation, Parameter, Router, TableInvalid


async def handler(*_: Any) -> None: ...


def options(allowed: Sequence[str]) -> Handler:
    return handler


def row(method: str, path: str, name: str = "", **more: Any) -> Operation:
    return Operation(method, path, handler, name or f"{method} {path}", "", {200: Answer("")}, **more)


ROUTER = Router(
    [
        row("GET", "/v1/topics"),
        row("POST", "/v1/topics"),
        row("GET", "/v1/topics/{topic}"),
        row("GET", "/v1/topics/{topic}/records"),
        row("GET", "/v1/topics/{topic}/partitions/{partition}/records"),
        row("GET", "/v1/records/{topic}"),
        row("DELETE", "/v1/records/{topic}/{key...}"),
    ],
    options,
)


@pytest.mark.parametrize(
    ("path", "values", "methods"),
    [
        (b"/v1/topics", [], ["GET", "HEAD", "POST", "OPTIONS"]),
        (b"/v1/topics/orders", [b"orders"], ["GET", "HEAD", "OPTIONS"]),
        (b"/v1/topics/a%2Fb", [b"a%2Fb"], ["GET", "HEAD", "OPTIONS"]),
        (b"/v1/topics/records", [b"records"], ["GET", "HEAD", "OPTIONS"]),
        (b"/v1/topics/orders/partitions/3/records", [b"orders", b"3"], ["GET", "HEAD", "OPTIONS"]),
        (b"/v1/records/orders", [b"orders"], ["GET", "HEAD", "OPTIONS"]),
        (b"/v1/records/orders/", [b"orders", b""], ["DELETE", "OPTIONS"]),
        (b"/v1/records/orders/eu/7//x/", [b"orders", b"eu/7//x/"], ["DELETE", "OPTIONS"]),
    ],
)
def test_paths_that_are_there(path: bytes, values: list[bytes], methods: list[str]) -> None:
    found, taken = ROUTER.find(path)
    assert found is not None
    assert (taken, list(found)) == (values, methods)


@pytest.mark.parametrize(
    "path",
    [
        *(b"", b"/", b"*", b"v1/topics", b"//v1/topics", b"/V1/topics", b"/v1", b"/v1/"),
        *(b"/v1/topics/", b"/v1/topics//records", b"/v1/topics/o/x"),
        *(b"/v1/topics/o/partitions", b"/v1/topics/o/partitions//records"),
        *(b"/v1/records", b"/v1/records/", b"/v1/records//k"),
    ],
)
def test_paths_that_are_not(path: bytes) -> None:
    assert ROUTER.find(path)[0] is None


@given(st.binary(max_size=60))
def test_any_bytes_are_some_path_or_none(path: bytes) -> None:
    ROUTER.find(b"/v1/" + path)
    ROUTER.find(path)


@pytest.mark.parametrize(
    "rows",
    [
        [row("GET", "/a", "x"), row("POST", "/a", "x")],
        [row("GET", "/a", "x"), row("GET", "/a", "y")],
        [row("BREW", "/a")],
        [row("OPTIONS", "/a"), row("OPTIONS", "/a", "y")],
        [row("GET", "/a/{b}"), row("GET", "/a/c")],
        [row("GET", "/a/c"), row("GET", "/a/{b}")],
        [row("GET", "/a/{b...}"), row("GET", "/a/c")],
        [row("GET", "/a/{b}"), row("POST", "/a/{c}")],
    ],
)
def test_tables_that_contradict_themselves(rows: list[Operation]) -> None:
    with pytest.raises(TableInvalid):
        Router(rows, options)


def test_parameters_within_alternatives_are_parameters() -> None:
    choice = Alternatives(name="start", about="", forms=((Parameter(name="a", about=""),), (Parameter(name="b", about=""),)))
    path = Parameter(name="topic", place="path", about="")
    assert row("GET", "/{topic}", parameters=(path, choice)).query_names() == {"a", "b"}


async def test_what_a_row_does_not_name_never_reaches_a_handler(door: Any) -> None:
    for method, path in (("GET", "/v1/topics"), ("DELETE", "/v1/topics/orders"), ("GET", "/v1/openapi.json"), ("GET", "/docs")):
        answer = await door.call(method, f"{path}?surprise=1")
        assert (answer.status, answer.slug, answer.problem["name"]) == (400, "parameter-invalid", "surprise")
