"""A record on its way in, as edges hand it over."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Outgoing(msgspec.Struct, gc=False):
    """A record to publish. `publish` fills in what is None: its own clock, a new id, the key's partition.

    With `ttl_ms` (1 to `expiry.TTL_MS_MAX`) it expires so long after it was taken; or at `expires_at_ms`.
    """

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp_ms: int | None = None
    message_id: str | None = None
    partition: int | None = None
    ttl_ms: int | None = None
    expires_at_ms: int | None = None

    @property
    def expires(self) -> bool:
        return self.ttl_ms is not None or self.expires_at_ms is not None

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        size = len(self.key or b"") + len(self.value or b"")
        return size + sum(len(name) + len(content or b"") for name, content in self.headers)
