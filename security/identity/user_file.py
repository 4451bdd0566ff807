"""The file of users: `{"users": [{"record": {...}, "scram": {"SCRAM-SHA-256": {...}}}], "decoy_key": ""}`, a shared document."""

import msgspec

from security.identity.document_file import DocumentFile, StoreBusy, StoreDamaged, StoreFull
from security.identity.scram import HASHES, ScramSecret


class UserStoreDamaged(StoreDamaged):
    what, loss = "user", "all users are then gone, tokens are not"


class UserStoreFull(StoreFull):
    what, room = "user", "delete users that are no longer there"


class UserStoreBusy(StoreBusy):
    what = "user"


class UserRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be known of a user. Times are Unix time in milliseconds."""

    name: str
    roles: tuple[str, ...]
    created_at_ms: int


class KeptUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record, and by mechanism what proves the user's password: apart, so that what is listed never holds it."""

    record: UserRecord
    scram: dict[str, ScramSecret]

    def __repr__(self) -> str:
        return f"KeptUser({self.record!r}, {sorted(self.scram)})"


class UserFileBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`decoy_key` makes the salts that names get which are not there: lasting, or a restart would tell them apart."""

    users: tuple[KeptUser, ...] = ()
    decoy_key: bytes = b""

    def __repr__(self) -> str:
        return f"UserFileBody({self.users!r})"


class UserFile(DocumentFile[UserFileBody]):
    noun = "users"
    damaged, full, busy = UserStoreDamaged, UserStoreFull, UserStoreBusy
    empty = UserFileBody()

    def check(self, body: UserFileBody) -> None:
        sound = all(
            mechanism in HASHES and len(secret.stored_key) == len(secret.server_key) == HASHES[mechanism]().digest_size
            for kept in body.users
            for mechanism, secret in kept.scram.items()
        )
        if not sound or len({kept.record.name for kept in body.users}) < len(body.users):
            raise ValueError("one of its users contradicts itself or another")
