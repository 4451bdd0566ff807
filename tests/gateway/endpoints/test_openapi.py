"""The document says what the router does, no less and no more. Whether it is true on the wire: tests/conformance/rest.py."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from gateway.endpoints.openapi import LISTENER, document
from gateway.endpoints.operations import TAIL, Answer, Operation
from gateway.endpoints.records_json import Members
from gateway.endpoints.rest import RestApp
from gateway.endpoints.rest_options import RestOptions, SseOptions
from gateway.errors import TABLE, UNEXPECTED
from gateway.listen.http import _refusals
from gateway.settings import LimitsSection


@pytest.fixture
def whole(door: Any) -> Any:
    return json.loads(msgspec.json.encode(document(door.app.router)))


def each(whole: Any) -> list[tuple[str, str, Any]]:
    return [(path, method, one) for path, methods in whole["paths"].items() for method, one in methods.items()]


async def test_everybody_may_read_it(door: Any, whole: Any) -> None:
    answer = await door.get("/v1/openapi.json", token="")
    assert (answer.status, answer.json) == (200, whole)


def test_it_is_openapi_3_1(whole: Any) -> None:
    assert whole["openapi"] == "3.1.0"
    for schema in whole["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_every_route_is_in_it_and_nothing_else(door: Any, whole: Any) -> None:
    """Also one that somebody would put into the router's tree beside its table."""

    def walk(step: Any, path: str) -> set[tuple[str, str]]:
        found = {(path, method.lower()) for method in step.methods or ()}
        for literal, following in step.literals.items():
            found |= walk(following, f"{path}/{literal.decode()}")
        for following in (step.value, step.tail):
            found |= walk(following, f"{path}/{{}}") if following is not None else set()
        return found

    reachable = walk(door.app.router._root, "")
    assert reachable == {(re.sub(r"{\w+}", "{}", path), method) for path, method, _ in each(whole)}


async def test_a_new_row_is_in_it(door: Any) -> None:
    async def handler(exchange: Any) -> None: ...

    rows = [Operation("GET", "/v1/new", handler, "new", "New", {200: Answer("It is new")})]
    door.app = RestApp(door.pipeline, door.metrics, RestOptions(), SseOptions(), door.store, rows)
    assert "/v1/new" in (await door.get("/v1/openapi.json")).json["paths"]


def test_the_application_routes_by_nothing_but_the_table(door: Any) -> None:
    """No path is written where requests are dispatched."""
    import inspect

    from gateway.endpoints import rest

    assert not re.search(r"""["'](?:/|\bv1\b)""", inspect.getsource(rest))


def test_path_parameters_are_those_of_the_path(whole: Any) -> None:
    for path, _, one in each(whole):
        named = [parameter["name"] for parameter in one.get("parameters", ()) if parameter["in"] == "path"]
        assert named == re.findall(r"{(\w+)}", path), path
        assert TAIL not in path


def test_ids_are_unique_and_everything_is_described(whole: Any) -> None:
    ids = [one["operationId"] for _, _, one in each(whole)]
    assert len(ids) == len(set(ids))
    tags = {tag["name"] for tag in whole["tags"]}
    for path, method, one in each(whole):
        assert one["summary"], path
        assert set(one["tags"]) <= tags
        for parameter in one.get("parameters", ()):
            assert parameter["description"], (path, parameter["name"])
        for status, answer in one["responses"].items():
            assert answer["description"], (path, method, status)


def test_references_lead_somewhere(whole: Any) -> None:
    found = set(re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', json.dumps(whole)))
    assert found <= set(whole["components"]["schemas"])
    assert set(whole["components"]["schemas"]) - found <= {"Problem"}


def test_problems_are_those_of_the_error_table(whole: Any) -> None:
    known = {(row.status, row.slug) for row in (*TABLE.values(), UNEXPECTED)}
    known |= {(status, slug) for status, problems in LISTENER.items() for slug in problems}
    for path, method, one in each(whole):
        for status, answer in one["responses"].items():
            kinds = answer.get("content", {})
            if "application/problem+json" in kinds:
                types = kinds["application/problem+json"]["schema"]["allOf"][1]["properties"]["type"]["enum"]
                assert {(int(status), one.removeprefix("/problems/")) for one in types} <= known, (path, method)


def test_the_listeners_refusals_are_those_of_the_listener() -> None:
    refusals = _refusals(LimitsSection()).values()
    assert {(one.status, one.reason, one.title) for one in refusals} == {
        (status, slug, title) for status, problems in LISTENER.items() for slug, title in problems.items()
    }


def test_only_open_operations_say_that_they_are(door: Any, whole: Any) -> None:
    opened = {one["operationId"] for _, method, one in each(whole) if one.get("security") == [] and method != "options"}
    assert {name for name in opened if not name.startswith("head_of_")} == {
        route.operation.name
        for methods in door.app.router.paths().values()
        for method, route in methods.items()
        if route.operation.open and method == "GET"
    }
    for path, method, one in each(whole):
        assert ("401" in one["responses"]) == (one.get("security") != []), (path, method)


def test_record_objects_are_what_is_decoded(whole: Any) -> None:
    described = whole["components"]["schemas"]["Members"]
    assert list(described["properties"]) == [field.encode_name for field in msgspec.structs.fields(Members)]
    assert described["additionalProperties"] is False


@pytest.mark.parametrize(
    ("record", "valid"),
    [
        ({"value": 1}, True),
        ({"value": None}, True),
        ({"value": {}, "key": "k", "headers": {"a": ["b", None]}}, True),
        ({"text": "a", "timestamp": "2024-02-29T12:00:00+01:00"}, True),
        ({"text": "a", "timestamp": "2023-02-29T12:00:00Z"}, False),
        ({"text": "a", "timestamp": "2000-02-29T12:00:00.123456789Z"}, True),
        ({"text": "a", "timestamp": "2100-02-29T12:00:00Z"}, False),
        ({"text": "a", "timestamp": 0}, True),
        ({"text": "a", "timestamp": -1}, False),
        ({"value64": "AA=="}, True),
        ({"value64": "AA"}, False),
        ({}, False),
        ({"value": 1, "text": "a"}, False),
        ({"text": "a", "value64": "AA=="}, False),
        ({"text": "a", "value": None}, False),
        ({"text": None}, False),
        ({"value": 1, "key": "a", "key64": "AA=="}, False),
        ({"value": 1, "key": None, "key64": "AA=="}, True),
        ({"value": 1, "colour": "red"}, False),
        ({"value": 1, "headers": {"Sprawl-x": "a"}}, False),
        ({"value": 1, "id": "x"}, False),
        ({"value": 1, "partition": -1}, False),
    ],
)
async def test_the_schema_of_a_record_agrees_with_the_node(door: Any, whole: Any, record: Any, valid: bool) -> None:
    operation = whole["paths"]["/v1/topics/{topic}/records"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert jsonschema_rs.validator_for({**schema, "components": whole["components"]}).is_valid(record) is valid
    answer = await door.post("/v1/topics/orders/records", record)
    assert (answer.status == 200) is valid
