"""Users with passwords, as Kafka's clients know them: proved by SCRAM, kept as what cannot be logged in with.

A user `alice` is the principal `user:alice`; its rights are its roles and what the policy binds to that name. The store is a
document that the node and the command line share (`security.identity.shared_store`).

**Off the event loop:** the constructor and everything that changes. `secret`, `find`, `list` and the provider only read memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from security.errors import CredentialsInvalid, SecurityError
from security.identity.chain import Credential
from security.identity.scram import (
    HASHES,
    ITERATIONS_MAX,
    ITERATIONS_MIN,
    NAME_CHARS_MAX,
    SALT_BYTES,
    ScramProof,
    ScramSecret,
    secret_of,
    version_of,
)
from security.identity.shared_store import STALE_MS_MAX, SharedStore
from security.identity.user_file import (
    KeptUser,
    UserFile,
    UserFileBody,
    UserRecord,
    UserStoreBusy,
    UserStoreDamaged,
    UserStoreFull,
)
from security.policy.model import check_role_name
from security.principal import Principal, PrincipalKind

__all__ = [
    "UserExists",
    "UserProvider",
    "UserRecord",
    "UserStore",
    "UserStoreBusy",
    "UserStoreDamaged",
    "UserStoreFull",
    "UserUnknown",
]

USERS_MAX = 10_000
DECOY_KEY_BYTES = 32
ROLES_PER_USER_MAX = 32
PASSWORD_CHARS_MIN, PASSWORD_CHARS_MAX = 8, 256


@dataclass(eq=False)
class UserUnknown(SecurityError):
    """There is no user of this name, or it has no secret of this mechanism."""

    name: str

    def __str__(self) -> str:
        return f"there is no user {self.name!r}: `sprawl users list` shows their names"


@dataclass(eq=False)
class UserExists(SecurityError):
    """A user of this name is there already."""

    name: str

    def __str__(self) -> str:
        return f"there is a user {self.name!r} already: give it another password with `sprawl users password {self.name}`"


class UserStore(SharedStore[UserFileBody, dict[str, KeptUser]]):
    """The users of a node. `clock_ms` is Unix time, `random(n)` gives n bytes fit for salts. Raises `UserStoreDamaged`."""

    def __init__(
        self,
        path: Path,
        clock_ms: Callable[[], int],
        random: Callable[[int], bytes],
        *,
        users_max: int = USERS_MAX,
        stale_ms_max: int = STALE_MS_MAX,
    ) -> None:
        self.users_max = users_max
        self._random = random
        self._first_decoy_key = random(DECOY_KEY_BYTES)
        super().__init__(UserFile(path), clock_ms, stale_ms_max)

    def _index(self, body: UserFileBody) -> dict[str, KeptUser]:
        return {kept.record.name: kept for kept in body.users}

    # Reading: memory only, any thread.

    def secret(self, mechanism: str, name: str) -> ScramSecret | None:
        self._refuse_when_stale()
        kept = self._state.index.get(name)
        return None if kept is None else kept.scram.get(mechanism)

    @property
    def decoy_key(self) -> bytes:
        """For `ScramExchange`. It is kept with the first user; before that there is nobody to be told apart from."""
        return self._state.body.decoy_key or self._first_decoy_key

    def find(self, name: str) -> UserRecord | None:
        kept = self._state.index.get(name)
        return None if kept is None else kept.record

    def list(self) -> Sequence[tuple[UserRecord, dict[str, int]]]:
        """By name, with the iterations of each mechanism that the user can log in with."""
        return [
            (kept.record, {mechanism: secret.iterations for mechanism, secret in sorted(kept.scram.items())})
            for _, kept in sorted(self._state.index.items())
        ]

    # Changing: blocks.

    def create(self, name: str, roles: Sequence[str], password: str) -> UserRecord:
        """A user who can log in by every mechanism; durable on return.

        Raises `UserExists`, `ValueError` for arguments out of their bounds, `UserStoreFull`, `UserStoreBusy`,
        `UserStoreDamaged`, `OSError`.
        """
        _check_roles(roles)
        record = UserRecord(_checked_name(name), tuple(dict.fromkeys(roles)), self._clock_ms())
        secrets = self._secrets(password)
        with self._changing() as state:
            if name in state.index:
                raise UserExists(name)
            self._put(state.body, KeptUser(record, secrets))
        return record

    def set_password(self, name: str, password: str) -> UserRecord:
        """Live connections proved by the old one end within a second. Raises `UserUnknown`, and as `create`."""
        secrets = self._secrets(password)
        with self._changing() as state:
            kept = state.index.get(name)
            if kept is None:
                raise UserUnknown(name[:NAME_CHARS_MAX])
            self._put(state.body, KeptUser(kept.record, secrets))
            return kept.record

    def put_secret(self, name: str, mechanism: str, secret: ScramSecret) -> None:
        """One mechanism's secret, made by the caller; a user who is not there is made, without roles. Raises as `create`."""
        _check_secret(mechanism, secret)
        record = UserRecord(_checked_name(name), (), self._clock_ms())
        with self._changing() as state:
            kept = state.index.get(name) or KeptUser(record, {})
            self._put(state.body, KeptUser(kept.record, {**kept.scram, mechanism: secret}))

    def delete_secret(self, name: str, mechanism: str) -> None:
        """A user without roles and without a secret left is gone. Raises `UserUnknown`, and as `create`."""
        with self._changing() as state:
            kept = state.index.get(name)
            if kept is None or mechanism not in kept.scram:
                raise UserUnknown(name[:NAME_CHARS_MAX])
            left = {other: secret for other, secret in kept.scram.items() if other != mechanism}
            if left or kept.record.roles:
                self._put(state.body, KeptUser(kept.record, left))
            else:
                self._remove(state.body, name)

    def delete(self, name: str) -> None:
        """Live connections end within a second. Raises `UserUnknown`, and as `create`."""
        with self._changing() as state:
            if name not in state.index:
                raise UserUnknown(name[:NAME_CHARS_MAX])
            self._remove(state.body, name)

    def _put(self, body: UserFileBody, user: KeptUser) -> None:
        others = tuple(kept for kept in body.users if kept.record.name != user.record.name)
        if len(others) >= self.users_max:
            raise UserStoreFull("users_max", self.users_max)
        self._write(UserFileBody((*others, user), self.decoy_key))

    def _remove(self, body: UserFileBody, name: str) -> None:
        self._write(UserFileBody(tuple(kept for kept in body.users if kept.record.name != name), self.decoy_key))

    def _secrets(self, password: str) -> dict[str, ScramSecret]:
        if not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX or not password.isprintable():
            raise ValueError(f"a password has {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} printable characters")
        return {mechanism: secret_of(mechanism, password, self._random(SALT_BYTES)) for mechanism in HASHES}


def user_name_problem(name: str) -> str | None:
    """Why there can be no user of this name."""
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        return f"a user's name has 1 to {NAME_CHARS_MAX} printable characters: {name[:40]!r}"
    return None


def _checked_name(name: str) -> str:
    problem = user_name_problem(name)
    if problem is not None:
        raise ValueError(problem)
    return name


def _check_roles(roles: Sequence[str]) -> None:
    if len(roles) > ROLES_PER_USER_MAX:
        raise ValueError(f"a user has at most {ROLES_PER_USER_MAX} roles, not {len(roles)}")
    for role in roles:
        check_role_name(role)


def _check_secret(mechanism: str, secret: ScramSecret) -> None:
    if mechanism not in HASHES:
        raise ValueError(f"{mechanism[:40]!r} is no mechanism: known are {', '.join(HASHES)}")
    if not ITERATIONS_MIN <= secret.iterations <= ITERATIONS_MAX:
        raise ValueError(f"a password is salted with {ITERATIONS_MIN} to {ITERATIONS_MAX} iterations, not {secret.iterations}")
    if not 0 < len(secret.salt) <= PASSWORD_CHARS_MAX:
        raise ValueError(f"a salt has 1 to {PASSWORD_CHARS_MAX} bytes, not {len(secret.salt)}")


class UserProvider:
    """The store as an `IdentityProvider`: who has proved the password of one of its users."""

    def __init__(self, store: UserStore) -> None:
        self._store = store

    @property
    def proves(self) -> str:
        return "scram"

    @property
    def mechanisms(self) -> tuple[str, ...]:
        return tuple(HASHES)

    def recognises(self, credential: Credential) -> bool:
        return isinstance(credential, ScramProof)

    async def authenticate(self, credential: Credential) -> Principal:
        if not isinstance(credential, ScramProof):
            raise CredentialsInvalid("not_a_proof")
        if not credential.proved:
            raise CredentialsInvalid("unknown")  # the name or the password: nobody is told which
        self._check(credential.name, credential.mechanism, credential.version)
        record = self._store.find(credential.name)
        assert record is not None
        return principal_of(record, f"{credential.mechanism}/{credential.version}")

    def still_valid(self, principal: Principal) -> None:
        mechanism, _, version = (principal.credential_id or "").partition("/")
        name = principal.name.removeprefix("user:")
        self._check(name, mechanism, version)
        record = self._store.find(name)
        if record is None or frozenset(record.roles) != principal.roles:
            raise CredentialsInvalid("changed")

    def _check(self, name: str, mechanism: str, version: str) -> None:
        secret = self._store.secret(mechanism, name)
        if secret is None:
            raise CredentialsInvalid("unknown")
        if version_of(secret) != version:
            raise CredentialsInvalid("changed")


def principal_of(record: UserRecord, credential_id: str | None = None) -> Principal:
    """What the user is to the policy."""
    return Principal(
        name=f"user:{record.name}",
        kind=PrincipalKind.USER,
        proved_by="scram",
        roles=frozenset(record.roles),
        credential_id=credential_id,
    )
