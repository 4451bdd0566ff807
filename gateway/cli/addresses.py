"""`topic/key`, as paths name records."""

from __future__ import annotations

import click

Address = tuple[str, str | None]


def parse_address(text: str, key: str | None = None) -> Address:
    """`orders/eu/7` -> topic `orders`, key `eu/7`; `orders` has no key, `orders/` the empty one; or the key apart, by `--key`."""
    topic, slash, rest = text.partition("/")
    if not topic:
        raise click.BadParameter(
            f"{text!r} begins with no topic; write topic or topic/key, as in orders/eu/7", param_hint="ADDRESS"
        )
    if slash and key is not None:
        raise click.UsageError(f"{text!r} names a key already; leave out --key, or the part after the slash")
    for part in (topic, rest, key or ""):
        if not _is_unicode(part):
            raise click.BadParameter("an address is UTF-8 text", param_hint="ADDRESS")
    return topic, rest if slash else key


def _is_unicode(text: str) -> bool:
    """Bytes of an argument that are no UTF-8 arrive as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
