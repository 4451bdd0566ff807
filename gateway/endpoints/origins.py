"""Pages of other origins (Fetch standard, 3.2: CORS). None may call, unless `rest.origins` names it.

A page is refused, not only kept from reading the answer: browsers send some requests without asking first, and with a client
certificate or on an anonymous listener they would come with rights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus

from gateway.endpoints.exchange import Exchange
from gateway.errors import OriginRefused
from gateway.wire.websocket import origin_allowed

# How long a browser may keep the answer to its question. (Chromium's own bound is two hours.)
PREFLIGHT_MAX_AGE_S = 600

_FIELD_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, -]{1,4096}")


class Origins:
    """`allowed` as `https://host[:port]`."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(allowed)

    def check(self, exchange: Exchange) -> None:
        """Nothing for callers that are no pages, and pages of this very host. Raises OriginRefused."""
        given = exchange.headers.get(b"origin")
        if given is None:
            self._check_part(exchange)
            return
        origin, host = given.decode("latin-1"), exchange.headers.get(b"host", b"").decode("latin-1")
        if origin in self._allowed:
            # Without Allow-Credentials: tokens are sent by the page's own code, and certificates are not for other origins.
            exchange.extra = [
                (b"access-control-allow-origin", given),
                (b"access-control-expose-headers", b"*"),
                (b"vary", b"origin"),
            ]
        elif not origin_allowed(origin, host, secure=exchange.scope.get("scheme") == "https", allowed=()):
            raise OriginRefused(origin)

    def _check_part(self, exchange: Exchange) -> None:
        """Pictures and scripts come without Origin, and the page may see their size, or run them. Browsers say (Fetch Metadata)
        that it is a page of another site. Links and bookmarks, whose answer only the user sees, are navigations."""
        fields = exchange.headers
        if fields.get(b"sec-fetch-mode") == b"no-cors" and fields.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
            raise OriginRefused("another site")


async def answer_preflight(exchange: Exchange, methods: bytes) -> bool:
    """Whether it was a browser's question on behalf of a page that may call, and then it is answered."""
    if b"access-control-request-method" not in exchange.headers or not exchange.extra:
        return False
    asked = exchange.headers.get(b"access-control-request-headers", b"")
    headers = [
        (b"allow", methods),
        (b"access-control-allow-methods", methods),
        (b"access-control-max-age", b"%d" % PREFLIGHT_MAX_AGE_S),
    ]
    if _FIELD_NAMES.fullmatch(asked):
        headers.append((b"access-control-allow-headers", asked))
    await exchange.begin(HTTPStatus.NO_CONTENT, headers)
    await exchange.write(b"", last=True)
    return True
