"""Who is asking: `Principal` (a proved identity) and `Session` (one connection's or request's principal, peer and protocol)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from security.policy.model import Scope

NAME_CHARS_MAX = 256


class PrincipalKind(StrEnum):
    USER = "user"
    SERVICE = "service"
    DEVICE = "device"
    ANONYMOUS = "anonymous"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Principal:
    """A proved identity. Rights come from `roles` (carried by the credential), and from bindings to `name` and `groups`.

    `name` begins with how it was named: "user:alice", "token:ab2c...", "cert:device-7"; only ANONYMOUS is "anonymous".
    `proved_by` is "token", "mtls", "anonymous", ... `scopes` narrow what the roles allow; None does not narrow.
    `expires_at_ms` is Unix time in milliseconds; `credential_id` a token's id or a certificate's SHA-256, never a secret.
    """

    name: str
    kind: PrincipalKind
    proved_by: str
    groups: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    claims: Mapping[str, object] = field(default_factory=dict, repr=False, hash=False)
    scopes: tuple[Scope, ...] | None = None
    expires_at_ms: int | None = None
    credential_id: str | None = None
    # All that a policy decision depends on, as one string: strings keep their hash, so it is a cheap key for caches.
    identity_key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > NAME_CHARS_MAX or not self.name.isprintable():
            raise ValueError(f"a principal's name has 1 to {NAME_CHARS_MAX} printable characters: {self.name[:40]!r}")
        if (self.name == "anonymous") != (self.kind is PrincipalKind.ANONYMOUS):
            raise ValueError(f"the name 'anonymous' and the kind anonymous go together: {self.name!r} is {self.kind}")
        object.__setattr__(self, "claims", MappingProxyType(dict(self.claims)))
        scopes = None if self.scopes is None else [str(scope) for scope in self.scopes]
        deciding = (self.name, self.kind.value, sorted(self.groups), sorted(self.roles), scopes)
        object.__setattr__(self, "identity_key", repr(deciding))

    def expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and self.expires_at_ms <= now_ms


ANONYMOUS = Principal("anonymous", PrincipalKind.ANONYMOUS, "anonymous")


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """What the pipeline is asked with. Two sessions are never equal, however alike: it is hashed by identity.

    `peer` is "ip:port"; `protocol` "rest", "websocket", "sse", ...; `id` the request's or connection's id.
    """

    principal: Principal
    peer: str
    protocol: str
    id: str
