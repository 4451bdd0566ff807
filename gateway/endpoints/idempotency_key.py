"""The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): a structured string, `"8e03978e-40d5"`, or as most
clients send it, the same without the quotes. Both name one key."""

from __future__ import annotations

import re

from gateway.endpoints.exchange import Exchange
from gateway.endpoints.operations import Parameter
from gateway.errors import ParameterInvalid

NAME = "Idempotency-Key"
CHARS_MAX = 255  # as at Stripe
REPLAYED = (b"idempotency-replayed", b"true")

# RFC 8941, 3.3.3: visible ASCII and spaces, quotes and backslashes escaped; bare without these four.
_QUOTED = re.compile(rb'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_BARE = re.compile(rb"[!#-\[\]-~]+")
_ESCAPED = re.compile(rb'\\(["\\])')

PARAMETER = Parameter(
    name=NAME,
    place="header",
    schema={"type": "string", "pattern": r"^[!#-\[\]-~]{1,255}$"},
    about="publish once: who repeats the request with this key within idempotency.window_ms (a day) gets the first answer again, "
    "and nothing is stored a second time; visible ASCII, without quotes or within them",
)


def idempotency_key(exchange: Exchange) -> str | None:
    """None where there is none. ParameterInvalid."""
    given = exchange.headers.get(b"idempotency-key")
    if given is None:
        return None
    if sum(name == b"idempotency-key" for name, _ in exchange.scope["headers"]) > 1:
        raise ParameterInvalid(NAME, "it is given twice")
    given = given.strip(b" \t")
    quoted = _QUOTED.fullmatch(given)
    key = _ESCAPED.sub(rb"\1", quoted[1]) if quoted else given
    if not key:
        raise ParameterInvalid(NAME, "it is empty; give each publish a key of its own, a UUID for example")
    if len(key) > CHARS_MAX:
        raise ParameterInvalid(NAME, f"it has {len(key)} characters; {CHARS_MAX} are allowed")
    if not quoted and not _BARE.fullmatch(key):
        raise ParameterInvalid(
            NAME, "it has other characters than visible ASCII; a space or a quote needs quotes around it (RFC 8941)"
        )
    return key.decode("ascii")
