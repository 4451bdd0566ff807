"""CloudEvents in JSON, as the OpenAPI document has them: what goes in, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.endpoints.cloudevents import ABSOLUTE_URI, INTEGER_MAX, INTEGER_MIN, MEDIA_TYPE, REQUIRED, SPECVERSION, URI_REFERENCE
from gateway.endpoints.parameters import PADDED_BASE64, RFC3339

EVENT: Mapping[str, Any] = {
    "type": "object",
    "required": list(REQUIRED),
    "properties": {
        "specversion": {"const": SPECVERSION},
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "minLength": 1},
        "type": {"type": "string", "minLength": 1},
        "time": {"type": "string"},
        "datacontenttype": {"type": "string"},
        "data_base64": {"type": "string"},
    },
    "propertyNames": {"pattern": "^(?:[a-z0-9]{1,64}|data_base64)$"},
}
"""An event in JSON, as it comes out; the document's schema."""

_TEXT = {"type": "string", "pattern": "^[^\u0000-\u001f\u007f-\u009f\ufdd0-\ufdef\ufffe\uffff]*$"}
_JSON_MEDIA_TYPE = r"^(?:application/json|[A-Za-z0-9.-]{1,20}/[A-Za-z0-9.-]{1,20}\+json)$"


def _unset_or(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


EVENT_IN: Mapping[str, Any] = {
    "allOf": [
        {
            "type": "object",
            "required": list(REQUIRED),
            "properties": {
                "specversion": {"const": SPECVERSION},
                "id": {**_TEXT, "minLength": 1},
                "source": {"type": "string", "pattern": f"^{URI_REFERENCE.pattern}$"},
                "type": {**_TEXT, "minLength": 1},
                "subject": _unset_or({**_TEXT, "minLength": 1}),
                "time": _unset_or(RFC3339),
                "dataschema": _unset_or({"type": "string", "pattern": f"^{ABSOLUTE_URI.pattern}$"}),
                "datacontenttype": _unset_or({"type": "string", "pattern": f"^{MEDIA_TYPE.pattern}$"}),
                "data": {},
                "data_base64": PADDED_BASE64,
            },
            "propertyNames": {"pattern": "^(?:[a-z0-9]{1,64}|data_base64)$"},
            "additionalProperties": {
                "anyOf": [
                    _TEXT,
                    {"type": "boolean"},
                    {"type": "integer", "minimum": INTEGER_MIN, "maximum": INTEGER_MAX},
                    {"type": "null"},
                ]
            },
        },
        {
            "anyOf": [
                {"properties": {"data": False}},
                {
                    "properties": {
                        "data_base64": False,
                        "datacontenttype": _unset_or({"type": "string", "pattern": _JSON_MEDIA_TYPE}),
                    }
                },
                {"properties": {"data_base64": False, "data": {"type": "string"}}},
            ]
        },
    ]
}
"""An event in JSON, as it comes in; the document's schema of what is checked here."""
EVENT_IN_WITHOUT_KEY: Mapping[str, Any] = {"allOf": [EVENT_IN, {"properties": {"partitionkey": {"type": "null"}}}]}
"""Where the path is the key. (That very key is allowed as well, which no schema can say.)"""
