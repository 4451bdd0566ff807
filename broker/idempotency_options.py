"""The bounds of idempotent publishing, named as in the configuration (`idempotency.*`)."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]


class IdempotencyOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is remembered of publishes that came with an idempotency key."""

    window_ms: Annotated[int, msgspec.Meta(ge=1_000, le=30 * 86_400_000)] = 86_400_000
    """How long the earlier answer is given; from then on the key is new again. A day, as at Stripe."""
    keys_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 200_000
    """Keys remembered, over all principals: some 300 bytes of memory each, and what the answer takes. Beyond it a publish with a
    new key is refused: no earlier answer is forgotten within the window."""
    keys_per_principal_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 100_000
    """The same for one principal, so that none takes the place of all."""
    records_max: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1_000
    """Records of one publish with a key: its answer is kept whole."""
