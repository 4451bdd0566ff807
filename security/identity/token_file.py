"""The file of tokens: `{"admin_made": true, "tokens": [{"record": {...}, "secret_sha256": "..."}]}` as a shared document."""

import hashlib

import msgspec

from security.identity.document_file import DocumentFile, StoreBusy, StoreDamaged, StoreFull
from security.policy.model import Scope


class TokenStoreDamaged(StoreDamaged):
    what, loss = "token", "to get a new admin token; all other tokens are then gone"


class TokenStoreFull(StoreFull):
    what, room = "token", "revoke tokens that are no longer used"


class TokenStoreBusy(StoreBusy):
    what = "token"


class TokenRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be known of a token. Times are Unix time in milliseconds. `scopes` None: not narrowed."""

    id: str
    name: str
    roles: tuple[str, ...]
    scopes: tuple[Scope, ...] | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None = None

    def dead(self, now_ms: int) -> bool:
        """Revoked or expired: it can never be used again."""
        return self.revoked_at_ms is not None or (self.expires_at_ms is not None and self.expires_at_ms <= now_ms)


class KeptToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record and the hash of its secret: apart, so that what is listed and rendered is a record and never holds the hash."""

    record: TokenRecord
    secret_sha256: str

    def __repr__(self) -> str:
        return f"KeptToken({self.record!r})"


class TokenFileBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`admin_made` stays true for ever, so that a node whose admin token was revoked does not make another by itself."""

    admin_made: bool = False
    tokens: tuple[KeptToken, ...] = ()


class TokenFile(DocumentFile[TokenFileBody]):
    noun = "tokens"
    damaged, full, busy = TokenStoreDamaged, TokenStoreFull, TokenStoreBusy
    empty = TokenFileBody()

    def check(self, body: TokenFileBody) -> None:
        try:
            digests_bytes = {len(bytes.fromhex(kept.secret_sha256)) for kept in body.tokens}
        except ValueError:
            raise ValueError("one of its tokens cannot be read") from None
        if digests_bytes - {hashlib.sha256().digest_size} or len({kept.record.id for kept in body.tokens}) < len(body.tokens):
            raise ValueError("one of its tokens contradicts itself or another")
