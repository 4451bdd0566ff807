"""Who a connection belongs to: SASL, a client certificate, or nobody where the listener allows that.

    SaslHandshake names the mechanism, SaslAuthenticate carries its messages (KIP-152), the chain decides what they come to.
    Without SASL, the first request that needs somebody is answered by the certificate of the TLS connection, else by `anonymous`.

Offered are the mechanisms whose credentials the chain can judge: OAUTHBEARER once it validates tokens of an OpenID provider.

A session ends with its credential, or after `kafka.reauthentication_ms_max`; a client that knows how (SaslAuthenticate 1) is told
when, and goes through both again on the same connection, as the same principal and by the same mechanism (KIP-368).

Every refusal is audited here or by `Pipeline.identify`, once; the connection that it ends is counted by whoever ends it.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.oauthbearer import OAUTHBEARER, challenge, read_bearer
from gateway.wire.kafka.sasl import MECHANISMS, PLAIN, PlainCredentials, read_plain
from security.errors import CredentialsInvalid, CredentialsMissing, IdentityProblem, SecurityError
from security.identity.chain import BearerToken, ClientCertificate, Credential, NoCredential
from security.identity.scram import ScramExchange, ScramProof, fresh_nonce
from security.principal import Session

if TYPE_CHECKING:
    from gateway.endpoints.kafka.connection import KafkaProtocol

PROTOCOL = "kafka"


class Authentication:
    """Of one connection. `session` is None until somebody has been found."""

    def __init__(self, connection: KafkaProtocol) -> None:
        self._connection = connection
        self.session: Session | None = None
        self.wants_tokens = False
        self._mechanism: str | None = None  # of the exchange under way
        self._scram: ScramExchange | None = None
        self._challenged: IdentityProblem | None = None  # what the client is to acknowledge, and is then told
        self._before: tuple[Session, str] | None = None  # who it was, and by which mechanism, while it is proved again
        self._proved_by: str | None = None
        self._ends_ms: int | None = None
        self._over = False

    # What is not SASL

    async def required(self) -> Session:
        """The session for an operation that needs one. IdentityProblem, audited."""
        if self.session is None and self._mechanism is None:
            certificate = self._connection.client_certificate()
            self.session = await self._identify(NoCredential() if certificate is None else ClientCertificate(certificate))
        return self.current()

    def current(self) -> Session:
        """The same once somebody has been found, judged again. IdentityProblem, audited."""
        try:
            session = self.session
            if self._mechanism is not None or session is None:
                raise CredentialsMissing
            node = self._connection.node
            node.pipeline.chain.still_valid(session.principal)
            if self._ends_ms is not None and node.clock.now_ms() >= self._ends_ms:
                raise CredentialsInvalid("session_ended")
        except IdentityProblem as refusal:
            if not self._over:  # others are under way, and end with it
                self._over = True
                self._audited(refusal)
            raise
        return session

    # SASL

    def mechanisms(self) -> tuple[str, ...]:
        judged = self._connection.node.pipeline.chain.mechanisms
        return tuple(mechanism for mechanism in MECHANISMS if mechanism in judged)

    def handshake(self, mechanism: str, version: int) -> bool:
        """Whether the mechanism is offered, and may come now; audited where not."""
        if mechanism not in self.mechanisms():
            self._audited(CredentialsInvalid("mechanism"))
            return False
        if self.session is not None and self._proved_by is not None:
            self._before = (self.session, self._proved_by)
        self._mechanism, self._scram = mechanism, None
        self.wants_tokens = version == 0
        return True

    @property
    def expected(self) -> bool:
        """Whether a message of SASL may come now."""
        return self._mechanism is not None

    @property
    def possible(self) -> bool:
        """Whether a handshake may begin: not one in the middle of another, and not for somebody known otherwise."""
        return self._mechanism is None and (self.session is None or self._proved_by is not None)

    def out_of_order(self) -> None:
        """A handshake or a message that may not come now: audited."""
        self._audited(CredentialsInvalid("sasl_state"))

    async def message(self, token: bytes) -> bytes:
        """The answer to a message of the mechanism. IdentityProblem, audited: the connection is to end. LoginsThrottled."""
        assert self._mechanism is not None
        if self._mechanism == PLAIN:
            await self._prove(_plain_credential(token))
            return b""
        if self._mechanism == OAUTHBEARER:
            return await self._bearer(token)
        try:
            if self._scram is None:
                return self._begin_scram().first(token)
            answer, proof = self._scram.final(token)
        except CredentialsInvalid:
            answer, proof = b"", ScramProof(self._mechanism, "", proved=False)
        await self._prove(proof)
        return answer

    async def raw_token(self, token: bytes) -> bytes:
        """The same for tokens without a header, where nothing but the connection's end can say that it failed."""
        try:
            answer = await self.message(token)
        except IdentityProblem:
            raise
        except SecurityError as problem:
            raise CredentialsInvalid("not_looked_at") from problem
        self.wants_tokens = self.expected
        return answer

    def lifetime_ms(self) -> int:
        """How long the session lasts, as told to the client once it is there; 0 for ever."""
        return 0 if self._ends_ms is None or self.expected else max(1, self._ends_ms - self._connection.node.clock.now_ms())

    def ended(self) -> None:
        self._scram = None
        if self._challenged is not None:  # it left without acknowledging it
            self._connection.refused("unauthenticated")

    async def _bearer(self, token: bytes) -> bytes:
        """A token that is refused is answered by a challenge, and whatever comes then by the failure (RFC 7628, 3.2.3)."""
        if self._challenged is not None:
            refusal, self._challenged = self._challenged, None
            raise refusal
        try:
            said = read_bearer(token)
        except MessageInvalid:
            raise await self._late(self._audited(CredentialsInvalid("malformed"))) from None
        try:
            await self._prove(BearerToken(said.token, said.acts_as))
        except IdentityProblem as refusal:
            self._challenged = refusal
            return challenge()
        return b""

    async def _prove(self, credential: Credential) -> None:
        mechanism = self._mechanism
        assert mechanism is not None
        try:
            session = await self._identify(credential)
        except IdentityProblem as refusal:
            raise await self._late(refusal) from None
        if self._before is not None:
            earlier, earlier_mechanism = self._before
            if earlier.principal.name != session.principal.name or earlier_mechanism != mechanism:
                raise await self._late(self._audited(CredentialsInvalid("another_principal")))
        self.session, self._proved_by = session, mechanism
        self._mechanism = self._scram = self._before = None
        self._ends_ms = self._end_of(session)

    async def _late(self, refusal: IdentityProblem) -> IdentityProblem:
        """Kafka's connection.failed.authentication.delay.ms: whoever fails waits, on this connection."""
        await asyncio.sleep(self._connection.node.options.failed_authentication_ms / 1_000)
        return refusal

    def _audited(self, refusal: IdentityProblem) -> IdentityProblem:
        connection = self._connection
        connection.node.pipeline.unidentified(refusal, peer=connection.peer, protocol=PROTOCOL, session=self.session)
        return refusal

    def _begin_scram(self) -> ScramExchange:
        users = self._connection.node.users
        assert self._mechanism is not None
        assert users is not None, "offered only where there are users"
        self._scram = ScramExchange(self._mechanism, users.secret, fresh_nonce(os.urandom), users.decoy_key)
        return self._scram

    async def _identify(self, credential: Credential) -> Session:
        connection = self._connection
        return await connection.node.pipeline.identify(
            credential, peer=connection.peer, protocol=PROTOCOL, listener=connection.listener, id=connection.id
        )

    def _end_of(self, session: Session) -> int | None:
        node = self._connection.node
        ends = [] if session.principal.expires_at_ms is None else [session.principal.expires_at_ms]
        if node.options.reauthentication_ms_max:
            ends.append(node.clock.now_ms() + node.options.reauthentication_ms_max)
        return min(ends) if ends else None


def _plain_credential(message: bytes) -> BearerToken:
    """A token as password. What cannot be read is a token that nobody recognises: it is refused, and audited, as one."""
    try:
        found = read_plain(message)
    except MessageInvalid:
        found = PlainCredentials("", "", "")
    if found.acts_as not in ("", found.name):
        found = PlainCredentials("", "", "")
    return BearerToken(found.password, found.name)
