"""Bearer tokens: `sprawl_<id>_<secret>`, made here, shown once, and kept only as a hash.

The id (12 base32 characters) is public: it names the token in lists, logs and principals. The secret is 32 random bytes as
base64url. Only SHA-256 of the secret's text is kept. A slow password hash would buy nothing: it slows the guessing of secrets
that people choose, while 2^256 equally likely ones are beyond guessing at any speed; and it would cost every request
milliseconds instead of one microsecond. The text is hashed rather than the bytes it stands for, since the last base64
character has two spare bits and a token is to have one spelling.

The store is a document that the node and the command line share (`security.identity.shared_store`); the node calls
`reload_if_changed` about once a second.

**Off the event loop:** the constructor, `create`, `revoke`, `bootstrap_admin` and `reload_if_changed` block on the disk and the
lock. `authenticate`, `still_valid` and `list` only read memory.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from security.errors import CredentialsInvalid, SecurityError, TokenExpired, TokenRevoked
from security.identity.chain import BearerToken, Credential
from security.identity.shared_store import STALE_MS_MAX, SharedStore, State
from security.identity.token_file import (
    KeptToken,
    TokenFile,
    TokenFileBody,
    TokenRecord,
    TokenStoreBusy,
    TokenStoreDamaged,
    TokenStoreFull,
)
from security.policy.model import Scope, check_role_name
from security.principal import Principal, PrincipalKind

__all__ = [
    "Scope",
    "TokenProvider",
    "TokenRecord",
    "TokenStore",
    "TokenStoreBusy",
    "TokenStoreDamaged",
    "TokenStoreFull",
    "TokenUnknown",
    "bootstrap_admin",
]

TOKENS_MAX = 10_000
ROLES_PER_TOKEN_MAX = 32
SCOPES_PER_TOKEN_MAX = 64
NAME_CHARS_MAX = 128
TTL_MS_MAX = 100 * 366 * 24 * 60 * 60 * 1_000  # a hundred years; what is to last longer has no end

_ID_BYTES = 8
_ID_CHARS = 12
_SECRET_BYTES = 32
_TOKEN = re.compile(r"sprawl_([a-z2-7]{12})_([A-Za-z0-9_-]{43})")
_NO_DIGEST = bytes(32)  # compared against for unknown ids; no text is known that hashes to it


@dataclass(eq=False)
class TokenUnknown(SecurityError):
    """No token has this id."""

    token_id: str

    def __str__(self) -> str:
        return f"there is no token {self.token_id!r}: `sprawl tokens list` shows their ids"


class _Known:
    """A token in memory: the digest as bytes, and its principal, made when it is first used."""

    __slots__ = ("digest", "principal", "record")

    def __init__(self, kept: KeptToken) -> None:
        self.record = kept.record
        self.digest = bytes.fromhex(kept.secret_sha256)
        self.principal: Principal | None = None


_TokenState: TypeAlias = State[TokenFileBody, dict[str, _Known]]


class TokenStore(SharedStore[TokenFileBody, dict[str, _Known]]):
    """The tokens of a node. `clock_ms` is Unix time, `random(n)` gives n bytes fit for keys. Raises `TokenStoreDamaged`."""

    def __init__(
        self,
        path: Path,
        clock_ms: Callable[[], int],
        random: Callable[[int], bytes],
        *,
        tokens_max: int = TOKENS_MAX,
        stale_ms_max: int = STALE_MS_MAX,
    ) -> None:
        self.tokens_max = tokens_max
        self._random = random
        super().__init__(TokenFile(path), clock_ms, stale_ms_max)

    def _index(self, body: TokenFileBody) -> dict[str, _Known]:
        return {kept.record.id: _Known(kept) for kept in body.tokens}

    # Reading: memory only, any thread.

    def authenticate(self, token_text: str) -> Principal:
        """Whose token this is. Raises `CredentialsInvalid`, `TokenExpired`, `TokenRevoked`, `TokenStoreDamaged`.

        An unknown id costs what a wrong secret costs and says the same, and only who has the secret learns more.
        """
        self._refuse_when_stale()
        parsed = _TOKEN.fullmatch(token_text)
        if parsed is None:
            raise CredentialsInvalid("malformed")
        known = self._state.index.get(parsed[1])
        digest = hashlib.sha256(parsed[2].encode()).digest()
        proved = hmac.compare_digest(digest, _NO_DIGEST if known is None else known.digest)
        if known is None or not proved:
            raise CredentialsInvalid("unknown")
        self._refuse_dead(known.record)
        return _principal(known)

    def still_valid(self, principal: Principal) -> None:
        """Raise what `authenticate` would raise now; and `CredentialsInvalid` when the token's rights are no longer these."""
        known = self._state.index.get(principal.credential_id or "")
        if known is not None and known.principal is principal and self._damage is None:
            record = known.record  # asked at each request: the usual answer at one look
            if record.revoked_at_ms is None and record.expires_at_ms is None:
                return
        self._refuse_when_stale()
        if known is None:
            raise CredentialsInvalid("unknown")
        self._refuse_dead(known.record)
        if _principal(known).identity_key != principal.identity_key:
            raise CredentialsInvalid("changed")

    def list(self) -> Sequence[TokenRecord]:
        """All records, oldest first, the revoked and expired too."""
        return sorted((known.record for known in self._state.index.values()), key=lambda r: (r.created_at_ms, r.id))

    def _refuse_dead(self, record: TokenRecord) -> None:
        if record.revoked_at_ms is not None:
            raise TokenRevoked(record.id)
        if record.expires_at_ms is not None and record.expires_at_ms <= self._clock_ms():
            raise TokenExpired(record.id, record.expires_at_ms)

    # Changing: blocks on the disk and on the other process, off the event loop.

    def create(
        self, name: str, roles: Sequence[str], scopes: Sequence[Scope] | None = None, ttl_ms: int | None = None
    ) -> tuple[str, TokenRecord]:
        """A new token's text, which is kept nowhere, and its record; durable on return. `scopes` None does not narrow.

        Raises `ValueError` for arguments out of their bounds, `TokenStoreFull`, `TokenStoreBusy`, `TokenStoreDamaged`, `OSError`.
        """
        _check_new(name, roles, scopes, ttl_ms)
        with self._changing() as state:
            return self._add(state, name, roles, scopes, ttl_ms)

    def revoke(self, token_id: str) -> TokenRecord:
        """Revoke for ever, durable on return; a second time changes nothing. Raises `TokenUnknown`, and as `create`."""
        with self._changing() as state:
            known = state.index.get(token_id)
            if known is None:
                raise TokenUnknown(token_id[:_ID_CHARS])
            if known.record.revoked_at_ms is not None:
                return known.record
            record = msgspec.structs.replace(known.record, revoked_at_ms=self._clock_ms())
            kept = (KeptToken(record, k.secret_sha256) if k.record.id == token_id else k for k in state.body.tokens)
            self._write(TokenFileBody(state.body.admin_made, tuple(kept)))
            return record

    def _add(
        self, state: _TokenState, name: str, roles: Sequence[str], scopes: Sequence[Scope] | None, ttl_ms: int | None
    ) -> tuple[str, TokenRecord]:
        now_ms = self._clock_ms()
        token_id = self._new_id(state)
        secret = base64.urlsafe_b64encode(self._random(_SECRET_BYTES)).rstrip(b"=").decode()
        record = TokenRecord(
            id=token_id,
            name=name,
            roles=tuple(dict.fromkeys(roles)),
            scopes=None if scopes is None else tuple(scopes),
            created_at_ms=now_ms,
            expires_at_ms=None if ttl_ms is None else now_ms + ttl_ms,
        )
        kept = KeptToken(record, hashlib.sha256(secret.encode()).hexdigest())
        admin_made = state.body.admin_made or ("admin" in roles and scopes is None)
        self._write(TokenFileBody(admin_made, (*self._room_for_one(state, now_ms), kept)))
        return f"sprawl_{token_id}_{secret}", record

    def _new_id(self, state: _TokenState) -> str:
        while True:  # 60 bits: a second round is a once-in-a-lifetime event
            token_id = base64.b32encode(self._random(_ID_BYTES)).decode().lower()[:_ID_CHARS]
            if token_id not in state.index:
                return token_id

    def _room_for_one(self, state: _TokenState, now_ms: int) -> tuple[KeptToken, ...]:
        """At the bound dead tokens are forgotten: unknown is refused like revoked."""
        kept = state.body.tokens
        if len(kept) >= self.tokens_max:
            kept = tuple(k for k in kept if not k.record.dead(now_ms))
        if len(kept) >= self.tokens_max:
            raise TokenStoreFull("tokens_max", self.tokens_max)
        return kept


def bootstrap_admin(store: TokenStore, name: str = "admin") -> str | None:
    """The text of the first admin token, made once in the life of a store; None when it ever had one, revoked or not."""
    with store._changing() as state:
        return None if state.body.admin_made else store._add(state, name, ("admin",), None, None)[0]


def _principal(known: _Known) -> Principal:
    if known.principal is None:
        record = known.record
        known.principal = Principal(
            name=f"token:{record.id}",
            kind=PrincipalKind.SERVICE,
            proved_by="token",
            roles=frozenset(record.roles),
            claims={"token_name": record.name},
            scopes=record.scopes,
            expires_at_ms=record.expires_at_ms,
            credential_id=record.id,
        )
    return known.principal


def _check_new(name: str, roles: Sequence[str], scopes: Sequence[Scope] | None, ttl_ms: int | None) -> None:
    if not name or len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise ValueError(f"a token's name has 1 to {NAME_CHARS_MAX} printable characters: {name[:40]!r}")
    if len(roles) > ROLES_PER_TOKEN_MAX:
        raise ValueError(f"a token has at most {ROLES_PER_TOKEN_MAX} roles, not {len(roles)}")
    for role in roles:
        check_role_name(role)
    if scopes is not None and not 1 <= len(scopes) <= SCOPES_PER_TOKEN_MAX:
        raise ValueError(f"a token has 1 to {SCOPES_PER_TOKEN_MAX} scopes, not {len(scopes)}; None does not narrow it")
    if ttl_ms is not None and not 0 < ttl_ms <= TTL_MS_MAX:
        raise ValueError(f"ttl_ms = {ttl_ms}: a token lives for 1 to {TTL_MS_MAX} milliseconds, or without an end (None)")


class TokenProvider:
    """The store as an `IdentityProvider`. It knows tokens of our own make: other bearer tokens have other issuers."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store

    @property
    def proves(self) -> str:
        return "token"

    @property
    def mechanisms(self) -> tuple[str, ...]:
        return ("PLAIN",)

    def recognises(self, credential: Credential) -> bool:
        return isinstance(credential, BearerToken) and credential.text.startswith("sprawl_")

    async def authenticate(self, credential: Credential) -> Principal:
        if not isinstance(credential, BearerToken):
            raise CredentialsInvalid("not_a_token")
        principal = self._store.authenticate(credential.text)
        if credential.name not in ("", "token", principal.name):
            raise CredentialsInvalid("another_name")
        return principal

    def still_valid(self, principal: Principal) -> None:
        self._store.still_valid(principal)
