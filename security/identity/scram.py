"""SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677), the server's side: a password is proved and never sent.

    client first    n,,n=alice,r=<nonce>
    server first    r=<nonce><ours>,s=<salt>,i=<iterations>
    client final    c=biws,r=<nonce><ours>,p=<proof>
    server final    v=<signature>

What is kept of a password (`ScramSecret`) lets nobody log in: the proof needs the client key, of which it is the hash. As Kafka's
clients do, names and passwords are taken as UTF-8 without SASLprep; channel binding is not offered.

A name that is not known goes all the way with a salt of its own, always the same for that name, and fails at the proof like a
wrong password: who asks learns nothing about which names there are.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from security.errors import CredentialsInvalid

HASHES: dict[str, Callable[..., Any]] = {"SCRAM-SHA-256": hashlib.sha256, "SCRAM-SHA-512": hashlib.sha512}
ITERATIONS_MIN = 4_096  # RFC 7677, section 4, and what Kafka's clients insist on
ITERATIONS_MAX = 16_384  # Kafka's own bound: each log-in costs the client so many rounds
ITERATIONS_DEFAULT = 8_192
MESSAGE_BYTES_MAX = 1_024
NONCE_BYTES = 24
SALT_BYTES = 24
NAME_CHARS_MAX = 128

_CLIENT_FIRST = re.compile(
    r"(?P<gs2>[nyp](?:=[A-Za-z0-9.-]+)?,(?P<authzid>a=[^,]+)?,)n=(?P<name>[^,]+),r=(?P<nonce>[^,]+)(?:,.*)?", re.DOTALL
)
_CLIENT_FINAL = re.compile(
    r"(?P<without_proof>c=(?P<binding>[^,]+),r=(?P<nonce>[^,]+)(?:,[^p,][^,]*)*),p=(?P<proof>[^,]+)", re.DOTALL
)
_PRINTABLE = re.compile(r"[\x21-\x2b\x2d-\x7e]+")  # RFC 5802, section 7: a nonce's characters


class ScramSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """RFC 5802, section 3: StoredKey and ServerKey with the salt and the count of iterations they were made with."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return f"ScramSecret(iterations={self.iterations})"


def secret_of(mechanism: str, password: str, salt: bytes, iterations: int = ITERATIONS_DEFAULT) -> ScramSecret:
    """Takes milliseconds: off the event loop."""
    salted = hashlib.pbkdf2_hmac(HASHES[mechanism]().name, password.encode(), salt, iterations)
    return secret_of_salted(mechanism, salted, salt, iterations)


def secret_of_salted(mechanism: str, salted_password: bytes, salt: bytes, iterations: int) -> ScramSecret:
    """From Hi(password, salt, iterations), which is what Kafka's AlterUserScramCredentials sends (KIP-554)."""
    hash_of = HASHES[mechanism]
    digest = hash_of().name
    stored_key = hash_of(hmac.digest(salted_password, b"Client Key", digest)).digest()
    return ScramSecret(iterations, salt, stored_key, hmac.digest(salted_password, b"Server Key", digest))


def fresh_nonce(random: Callable[[int], bytes]) -> str:
    return base64.urlsafe_b64encode(random(NONCE_BYTES)).decode()


@dataclass(frozen=True, slots=True)
class ScramProof:
    """What an exchange came to: the credential that the chain is asked about. `version` names the secret that was proved."""

    mechanism: str
    name: str
    proved: bool
    version: str = field(repr=False, default="")


def version_of(secret: ScramSecret) -> str:
    """Public: tells one password of a user from the next, and nothing else."""
    return hashlib.sha256(b"sprawl/v1/scram-version" + secret.salt + secret.stored_key).hexdigest()[:16]


class ScramExchange:
    """One log-in, sans I/O: `first`, then `final`, each once. `find` gives the secret of a mechanism and a name, or None.

    `nonce` is our part of it, from `fresh_nonce`; `decoy_key` (32 bytes, the node's own and lasting) makes the salts of names
    that are not there.
    """

    def __init__(
        self,
        mechanism: str,
        find: Callable[[str, str], ScramSecret | None],
        nonce: str,
        decoy_key: bytes,
    ) -> None:
        self.mechanism = mechanism
        self._hash = HASHES[mechanism]
        self._find, self._own_nonce, self._decoy_key = find, nonce, decoy_key
        self._name = ""
        self._secret: ScramSecret | None = None
        self._gs2 = self._bare = self._nonce = self._server_first = ""

    def first(self, message: bytes) -> bytes:
        """The server's first message. `CredentialsInvalid` for what is no client's first message."""
        found = _CLIENT_FIRST.fullmatch(_text(message))
        if found is None or self._server_first:
            raise CredentialsInvalid("malformed")
        if found["gs2"].startswith("p"):
            raise CredentialsInvalid("channel_binding")
        name = _name(found["name"])
        if found["authzid"] is not None and _name(found["authzid"][2:]) != name:
            raise CredentialsInvalid("authorization_id")
        if not _PRINTABLE.fullmatch(found["nonce"]):
            raise CredentialsInvalid("malformed")
        self._name, self._gs2 = name, found["gs2"]
        self._bare = found.string[len(self._gs2) :]  # with its extensions, which are signed too
        self._secret = self._find(self.mechanism, name)
        salt, iterations = self._decoy(name) if self._secret is None else (self._secret.salt, self._secret.iterations)
        self._nonce = found["nonce"] + self._own_nonce
        self._server_first = f"r={self._nonce},s={base64.b64encode(salt).decode()},i={iterations}"
        return self._server_first.encode()

    def final(self, message: bytes) -> tuple[bytes, ScramProof]:
        """The server's last message, empty where the proof is wrong, and what was proved. `CredentialsInvalid` if malformed."""
        found = _CLIENT_FINAL.fullmatch(_text(message))
        if found is None or not self._server_first:
            raise CredentialsInvalid("malformed")
        proof = _decoded(found["proof"])
        size = self._hash().digest_size
        if len(proof) != size or _decoded(found["binding"]) != self._gs2.encode():
            raise CredentialsInvalid("malformed")
        signed = f"{self._bare},{self._server_first},{found['without_proof']}".encode()
        self._server_first = ""
        secret = self._secret or ScramSecret(ITERATIONS_DEFAULT, b"", bytes(size), bytes(size))
        signature = hmac.digest(secret.stored_key, signed, self._hash().name)
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        proved = hmac.compare_digest(self._hash(client_key).digest(), secret.stored_key)
        same_nonce = hmac.compare_digest(found["nonce"].encode(), self._nonce.encode())
        if self._secret is None or not proved or not same_nonce:
            return b"", ScramProof(self.mechanism, self._name, proved=False)
        answer = b"v=" + base64.b64encode(hmac.digest(secret.server_key, signed, self._hash().name))
        return answer, ScramProof(self.mechanism, self._name, proved=True, version=version_of(secret))

    def _decoy(self, name: str) -> tuple[bytes, int]:
        return hmac.digest(self._decoy_key, f"{self.mechanism}\0{name}".encode(), "sha256")[:SALT_BYTES], ITERATIONS_DEFAULT


def _text(message: bytes) -> str:
    if len(message) > MESSAGE_BYTES_MAX:
        raise CredentialsInvalid("malformed")
    try:
        return message.decode()
    except UnicodeDecodeError:
        raise CredentialsInvalid("malformed") from None


def _name(said: str) -> str:
    """`=2C` is a comma, `=3D` the equals sign, and no other `=` may be there (RFC 5802, section 5.1)."""
    name = said.replace("=2C", ",").replace("=3D", "=")
    if said.count("=") != said.count("=2C") + said.count("=3D") or not 0 < len(name) <= NAME_CHARS_MAX:
        raise CredentialsInvalid("malformed")
    return name


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise CredentialsInvalid("malformed") from None
