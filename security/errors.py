"""Everything that `security` raises. Facts are fields, `str` is built from them and ends with what to do.

    SecurityError
    ├── KeyProblem                  the node's own keys: whoever runs the node can mend it
    │   ├── KeyMissing              nothing holds this key
    │   ├── KeyWrong                a key is there, it is not the one that wrapped this
    │   ├── KeyFilePermissions      others may read a file of keys
    │   ├── KeyFileExists           refusing to replace a file of keys
    │   ├── KeyFileBusy             another process is changing the file of keys
    │   ├── KeyFileDamaged          a file of keys does not parse
    │   ├── KeyFormatUnsupported    a newer build wrote the key file or key store
    │   ├── KeyShredded             the topic's root key was destroyed, or never made
    │   ├── KeyStoreExists          refusing to replace a key store
    │   ├── KeyStoreDamaged         the key store's bytes were altered or cut
    │   └── NonceExhausted          this epoch has sealed as often as it may
    ├── TamperedData                something sealed does not authenticate
    ├── IdentityProblem             the caller did not prove who it is
    │   ├── CredentialsMissing
    │   ├── CredentialsInvalid
    │   ├── TokenExpired
    │   ├── TokenRevoked
    │   └── CertificateRefused
    ├── LoginsThrottled             too many log-ins have failed, so this one was not looked at
    ├── AccessDenied                known, and not allowed
    ├── QuotaExceeded               known, allowed, and too much
    └── CertificateProblem          the node's own certificates

No field ever holds a secret: ids, paths and names only. `gateway/errors.py` translates the tree, once.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


class SecurityError(Exception):
    """The root: catch it where any refusal of this package is meant."""


class KeyProblem(SecurityError):
    """A key of the node is missing, wrong, unprotected or used up."""


@dataclass(eq=False)
class KeyMissing(KeyProblem):
    """`where` holds no key `key_id`; None when there are no keys at all."""

    where: str
    key_id: str | None
    what_to_do: str

    def __str__(self) -> str:
        wanted = "any key" if self.key_id is None else f"the key {self.key_id}"
        return f"{self.where} does not hold {wanted}: {self.what_to_do}"


@dataclass(eq=False)
class KeyWrong(KeyProblem):
    """The key named `key_id` is present and fails to authenticate what `where` says it wrapped."""

    key_id: str
    where: str

    def __str__(self) -> str:
        return (
            f"the key {self.key_id} does not open {self.where}, another key of that name sealed it: "
            "bring back the key file that belongs to this data, for instance from the key backup"
        )


@dataclass(eq=False)
class KeyFilePermissions(KeyProblem):
    """`mode` (permission bits) lets group or others at the key file."""

    path: Path
    mode: int

    def __str__(self) -> str:
        return (
            f"the key file {self.path} has mode {self.mode:04o}, others than its owner may use it: "
            f"run `chmod 600 {self.path}`, and rotate the key if it may have been read"
        )


@dataclass(eq=False)
class KeyFileExists(KeyProblem):
    """A new key file was asked for where one is: replacing it would lose all data under its keys."""

    path: Path

    def __str__(self) -> str:
        return f"a key file is already at {self.path}: load it, or rotate its key; it is never overwritten"


@dataclass(eq=False)
class KeyFileBusy(KeyProblem):
    """Two changes at once could lose one of two new keys, so the second does not wait, it refuses."""

    path: Path

    def __str__(self) -> str:
        return f"another process is changing the key file {self.path}: nothing was changed, try again when it is done"


@dataclass(eq=False)
class KeyFileDamaged(KeyProblem):
    """`reason` names the field or the place, never the content."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"the key file {self.path} cannot be used, {self.reason}: bring it back from the key backup"


@dataclass(eq=False)
class KeyFormatUnsupported(KeyProblem):
    """`what` (a path, or "the key store") was written by a newer build; this one reads up to `version_max`."""

    what: str
    version: int
    version_max: int

    def __str__(self) -> str:
        return (
            f"{self.what} has format version {self.version}, this build reads up to {self.version_max}: "
            "run the newer build that wrote it"
        )


@dataclass(eq=False)
class KeyShredded(KeyProblem):
    """No root key for this topic (16 bytes): destroyed on purpose, or never made."""

    topic_id: bytes

    def __str__(self) -> str:
        return (
            f"topic {self.topic_id.hex()} has no root key, it was shredded or never made: "
            "its records cannot be read; only a key backup from before the shredding can bring them back"
        )


@dataclass(eq=False)
class KeyStoreExists(KeyProblem):
    """A new key store was asked for where one is: replacing it would shred every topic in it."""

    def __str__(self) -> str:
        return "a key store is already there: load it; it is never overwritten"


@dataclass(eq=False)
class KeyStoreDamaged(KeyProblem):
    """The key store is not what was written: `reason` says which check failed."""

    reason: str

    def __str__(self) -> str:
        return (
            f"the key store is damaged, {self.reason}: "
            "bring it back from the key backup; do not start with an empty one, the data would stay unreadable"
        )


@dataclass(eq=False)
class NonceExhausted(KeyProblem):
    """The epoch has handed out `seals_max` nonces; another seal would weaken the key (NIST SP 800-38D, 8.3)."""

    topic_id: bytes
    key_id: int
    seals_max: int

    def __str__(self) -> str:
        return (
            f"the key {self.key_id:08x} of topic {self.topic_id.hex()} has sealed {self.seals_max} times, "
            "as often as it may: open a new epoch and seal with that"
        )


@dataclass(eq=False)
class TamperedData(SecurityError):
    """`what` does not authenticate: altered, moved from another place, or sealed with another key."""

    what: str

    def __str__(self) -> str:
        return f"{self.what} does not authenticate: it was altered, moved or sealed with another key, do not use it"


class IdentityProblem(SecurityError):
    """The caller did not prove who it is."""


class CredentialsMissing(IdentityProblem):
    """No credentials where some are asked for."""

    def __str__(self) -> str:
        return "no credentials were given: send a bearer token, log in by SASL, or show a client certificate"


@dataclass(eq=False)
class CredentialsInvalid(IdentityProblem):
    """`reason_code` is for logs and metrics (`malformed`, `unknown`, ...); the caller learns only that it failed."""

    reason_code: str

    def __str__(self) -> str:
        return f"the credentials are not valid ({self.reason_code}): check them, or ask for new ones"


@dataclass(eq=False)
class TokenExpired(IdentityProblem):
    """`token_id` is the public part; `expired_at_ms` is Unix time in milliseconds."""

    token_id: str
    expired_at_ms: int

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.expired_at_ms / 1000, UTC).isoformat(timespec="seconds")
        return f"the token {self.token_id} expired at {when}: ask for a new one"


@dataclass(eq=False)
class TokenRevoked(IdentityProblem):
    """`token_id` is the public part."""

    token_id: str

    def __str__(self) -> str:
        return f"the token {self.token_id} was revoked: ask for a new one"


@dataclass(eq=False)
class CertificateRefused(IdentityProblem):
    """A client's certificate that proves nothing here; `reason` says why."""

    reason: str

    def __str__(self) -> str:
        return f"the client certificate is refused, {self.reason}: use one issued by this node's CA"


@dataclass(eq=False)
class LoginsThrottled(SecurityError):
    """Whether the credential is right is not known: it was not looked at, and would be after `retry_after_ms`.

    `told` is whether this was said before of the same name at the same address, so that one line in the audit does.
    """

    retry_after_ms: int
    told: bool = False

    def __str__(self) -> str:
        return (
            f"too many log-ins by this name have failed from this address: try again in {self.retry_after_ms} ms, "
            "and end whatever logs in with a wrong password"
        )


@dataclass(eq=False)
class AccessDenied(SecurityError):
    """`principal` may not do `action` on `resource`; `reason` says which rule, or that there is none."""

    principal: str
    action: str
    resource: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.principal} may not {self.action} {self.resource}, {self.reason}: "
            "ask an administrator for a role that allows it"
        )


@dataclass(eq=False)
class QuotaExceeded(SecurityError):
    """`principal` used up `quota`; trying again makes sense after `retry_after_ms`."""

    principal: str
    quota: str
    retry_after_ms: int

    def __str__(self) -> str:
        return f"{self.principal} is over the quota {self.quota}: try again in {self.retry_after_ms} ms"


@dataclass(eq=False)
class CertificateProblem(SecurityError):
    """A certificate or key file of the node at `path` cannot be used."""

    path: Path
    reason: str
    what_to_do: str = "bring the missing or right file back, or move the folder away to have a new one made"

    def __str__(self) -> str:
        return f"{self.path} cannot be used, {self.reason}: {self.what_to_do}"
