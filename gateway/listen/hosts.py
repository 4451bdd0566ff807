"""Whether a request asks for this node by a name that is its own: the guard against DNS rebinding.

A page of `evil.example` whose name begins to resolve to 127.0.0.1 is, to the browser, still that page, and may read what it gets.
TLS ends that (no certificate has the name), and so does having to prove who one is. A plain or an anonymous listener has only the
Host header, which pages cannot choose: it must be a loopback name, or one of `listeners.http.hosts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from gateway.settings import Listener

# RFC 9110, 7.2: a name, an IPv4 address or an IPv6 address in brackets, and perhaps a port.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{0,5})?")


class Hosts:
    """`names` besides loopback, without ports: tunnels and port mappings change those."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(name.lower() for name in names) | {"localhost"}

    @classmethod
    def of(cls, listener: Listener) -> Hosts | None:
        """None for a listener that needs no such guard."""
        if not (listener.plain or listener.anonymous):
            return None
        return cls((listener.host, *listener.hosts))

    def allow(self, fields: list[bytes]) -> bool:
        """By the Host headers of a request: exactly one, with a name of ours."""
        if len(fields) != 1 or (match := _HOST.fullmatch(fields[0].strip())) is None:
            return False
        name = match[1].decode("ascii").lower()
        if name in self._names:
            return True
        try:
            return ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False
