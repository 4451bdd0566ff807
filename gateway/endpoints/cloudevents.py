"""CloudEvents 1.0.2 on HTTP, in and out: binary, structured (JSON) and batch.

A record that holds an event has the form of the Kafka protocol binding's binary mode (3.2), whichever way it came: attributes as
`ce_<name>` headers, datacontenttype as content-type, the data as value, the extension `partitionkey` as key. So whoever reads the
topic by the Kafka protocol finds standard events. The event's id becomes the message id where it is a UUIDv7, its time the
record's timestamp.

This module has the rules of attributes; `cloudevents_in.py` and `cloudevents_out.py` the three ways.

On the way out every record can be an event: one that never was gets an id, a source and a type of its place.

Our own code, and not the `cloudevents` package (2.2): that gives events without id or time ones of its own, takes data apart into
objects and writes them anew, and knows no batches. It is the referee of our tests.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from gateway.endpoints.timestamps import parse_timestamp_ms
from gateway.errors import EventInvalid
from gateway.pipeline import TIMESTAMP_MS_MAX

STRUCTURED = b"application/cloudevents+json"
BATCH = b"application/cloudevents-batch+json"
FAMILY = b"application/cloudevents"

HTTP_PREFIX = b"ce-"
RECORD_PREFIX = "ce_"
SPECVERSION = "1.0"
OWN_TYPE = "dev.sprawl.record"
"""The type of records that came as no event."""

REQUIRED = ("specversion", "id", "source", "type")
ATTRIBUTE_NAME_CHARS_MAX = 64  # the specification (3.1.1) advises 20 and sets no bound
_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]+", re.ASCII)
INTEGER_MIN, INTEGER_MAX = -(2**31), 2**31 - 1
# 3.1: no control characters, no halves of surrogate pairs, no noncharacters.
FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
# RFC 2046 without tabs, which no attribute may hold.
MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+ *(?:;[ -~]*)?", re.ASCII)
# RFC 3986, appendix A: the characters of a URI, with or without a scheme.
URI_REFERENCE = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+", re.ASCII)
ABSOLUTE_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+", re.ASCII)

Attributes: TypeAlias = dict[str, str]
"""By name, as their canonical strings (2)."""


def check(attributes: Attributes, index: int | None) -> int | None:
    """Every attribute against its rules (2, 3.1); returns the time in milliseconds if a record can have it."""
    for name in REQUIRED:
        if name not in attributes:
            raise EventInvalid(name, "it is missing, and every event has one", index)
    for name, text in attributes.items():
        if reason := _wrong(name, text):
            raise EventInvalid(name, reason, index)
    if "time" not in attributes:
        return None
    try:
        timestamp_ms = _rfc3339_ms(attributes["time"])
    except ValueError:
        raise EventInvalid("time", "it is no time of RFC 3339 with its zone", index) from None
    return timestamp_ms if 0 <= timestamp_ms <= TIMESTAMP_MS_MAX else None


def _wrong(name: str, text: str) -> str | None:
    if not _ATTRIBUTE_NAME.fullmatch(name) or len(name) > ATTRIBUTE_NAME_CHARS_MAX:
        return f"names of attributes have 1 to {ATTRIBUTE_NAME_CHARS_MAX} of a-z and 0-9"
    if FORBIDDEN.search(text):
        return "it holds a control character or a noncharacter"
    match name:
        case "specversion":
            return None if text == SPECVERSION else f"it is {SPECVERSION}, no other version is understood"
        case "data":
            return "that is the body's name, and no attribute's"
        case "source":
            return None if URI_REFERENCE.fullmatch(text) else "it is no URI reference (RFC 3986, 4.1)"
        case "dataschema":
            return None if ABSOLUTE_URI.fullmatch(text) else "it is no absolute URI (RFC 3986, 4.3)"
        case "datacontenttype":
            return None if MEDIA_TYPE.fullmatch(text) else "it is no media type (RFC 2046)"
        case "id" | "type" | "subject":
            return None if text else "it is empty"
    return None


def _rfc3339_ms(text: str) -> int:
    if "-" not in text:  # milliseconds, which `parse_timestamp_ms` takes as well
        raise ValueError(text)
    return parse_timestamp_ms(text)
