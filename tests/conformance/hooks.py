"""What schemathesis has to be told: forms that OpenAPI 3.1 leaves open, and which token is its own."""

from __future__ import annotations

import json
import os
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import CHECKS
from schemathesis.specs.openapi.checks import use_after_free as _use_after_free

OWN_TOKEN_ID = "SPRAWL_CONFORMANCE_TOKEN_ID"
OTHER_TOKEN_ID = "aaaaaaaaaaaa"


@schemathesis.serializer("application/x-ndjson")
def write_lines(context: Any, value: Any) -> bytes:
    """NDJSON is an array, an item a line (OpenAPI 3.2 calls that `itemSchema`)."""
    if isinstance(value, list):
        return b"\n".join(json.dumps(item).encode() for item in value)
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@schemathesis.deserializer("application/x-ndjson")
def read_lines(context: Any, response: Any) -> Any:
    return [json.loads(line) for line in response.content.splitlines() if line]


# `str.isprintable`: letters, digits, marks, signs and the space.
_PRINTABLE = st.characters(categories=("L", "M", "N", "P", "S"), include_characters=" ")
schemathesis.openapi.format("printable", st.text(_PRINTABLE, min_size=1).filter(str.isprintable))


def use_after_free(context: Any, response: Any, case: Any) -> bool | None:
    """schemathesis's own, but for OPTIONS: that speaks of a path, whether or not a resource is there (RFC 9110, 9.3.7)."""
    return None if case.method.upper() == "OPTIONS" else _use_after_free(context, response, case)


CHECKS.register(use_after_free)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """It finds the token that it asks with in the list of tokens, and would revoke it: it revokes another instead."""
    path = case.path_parameters or {}
    if path.get("token_id") == os.environ.get(OWN_TOKEN_ID):
        path["token_id"] = OTHER_TOKEN_ID
    case.body = _integers(case.body)


def _integers(body: Any) -> Any:
    """JSON Schema calls 48.0 an integer; typed decoders do not, and the document says so in words."""
    match body:
        case float() if body.is_integer() and abs(body) < 2**53:
            return int(body)
        case list():
            return [_integers(item) for item in body]
        case dict():
            return {name: _integers(item) for name, item in body.items()}
    return body
