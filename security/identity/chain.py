"""From what a caller offers to who it is: credentials, the `IdentityProvider` that each kind has, and the `Chain` of them.

A provider recognises credentials by their kind and never judges another's; the first that recognises one decides, and its
refusal is final. So no order of providers lets a bad credential fall through to a weaker proof, nor to `anonymous`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from security.errors import CredentialsInvalid, CredentialsMissing
from security.identity.scram import ScramProof
from security.principal import ANONYMOUS, Principal, PrincipalKind


@dataclass(frozen=True, slots=True)
class NoCredential:
    """The caller offered nothing."""


@dataclass(frozen=True, slots=True)
class BearerToken:
    """A token as it came, without the word `Bearer`; `name` is whose it is said to be, where the protocol has room for that."""

    text: str = field(repr=False)
    name: str = field(default="", repr=False)  # some put the token here


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """The certificate of a TLS client whose chain `ssl` has verified: `getpeercert(binary_form=True)`."""

    der: bytes = field(repr=False)


Credential: TypeAlias = NoCredential | BearerToken | ClientCertificate | ScramProof


class IdentityProvider(Protocol):
    """One way of proving who one is. Asynchronous, since directories and introspection are asked over the network."""

    @property
    def proves(self) -> str:
        """What its principals say in `proved_by`."""

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """The SASL mechanisms whose credentials it can judge. A mechanism is offered to clients once a provider says so."""

    def recognises(self, credential: Credential) -> bool:
        """Whether this credential is of its kind, by shape alone."""

    async def authenticate(self, credential: Credential) -> Principal:
        """The principal; raises `security.errors.IdentityProblem`."""

    def still_valid(self, principal: Principal) -> None:
        """Raise `security.errors.IdentityProblem` when what proved this principal no longer holds. Called often: no I/O."""


class Chain:
    """The providers of a node, asked in order."""

    def __init__(self, providers: Sequence[IdentityProvider]) -> None:
        self._providers = tuple(providers)
        self._by_proof = {provider.proves: provider for provider in self._providers}
        if len(self._by_proof) < len(self._providers):
            raise ValueError(f"two providers prove the same: {', '.join(p.proves for p in self._providers)}")
        self.mechanisms = frozenset(mechanism for provider in self._providers for mechanism in provider.mechanisms)
        """Of all of them."""

    async def authenticate(self, credential: Credential, *, anonymous_allowed: bool = False) -> Principal:
        """Who this is. `anonymous_allowed` is the listener's and counts only where nothing was offered.

        Raises `CredentialsMissing`, or `CredentialsInvalid` and the other `IdentityProblem` of the deciding provider.
        """
        if isinstance(credential, NoCredential):
            if anonymous_allowed:
                return ANONYMOUS
            raise CredentialsMissing
        for provider in self._providers:
            if provider.recognises(credential):
                return await provider.authenticate(credential)
        raise CredentialsInvalid("unknown_kind")

    def still_valid(self, principal: Principal) -> None:
        """For live connections: raise the `IdentityProblem` that authenticating again would raise."""
        if principal.kind is PrincipalKind.ANONYMOUS:
            return
        provider = self._by_proof.get(principal.proved_by)
        if provider is None:
            raise CredentialsInvalid("unknown_kind")
        provider.still_valid(principal)
