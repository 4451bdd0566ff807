"""OAUTHBEARER on the wire (RFC 7628, KIP-255): refused while nothing validates its tokens, and its states once something does.

The validator is the test's own, a provider in the chain like others: signed tokens of an issuer, much like a JSON Web Token.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.abc import AbstractTokenProvider
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient
from kafka import KafkaAdminClient
from kafka.errors import KafkaError as PythonError
from kafka.net.sasl.oauth import AbstractTokenProvider as PythonTokenProvider

from security.errors import CredentialsInvalid, TokenExpired
from security.identity.chain import BearerToken, Chain, Credential
from security.identity.tokens import TokenProvider
from security.identity.users import UserProvider
from security.principal import Principal, PrincipalKind
from tests.companions.kafka.java import run_java
from tests.gateway.endpoints.kafka.conftest import Closed, Kafka, RawClient
from tests.gateway.endpoints.kafka.test_authentication import audited, forever, works
from tests.services.kafka.bootstrap import write_properties

METADATA, HANDSHAKE, AUTHENTICATE = 3, 17, 36
UNSUPPORTED_MECHANISM, ILLEGAL_STATE, FAILED = 33, 34, 58
SECRET = b"the issuer's own"


def signed(name: str, lives_ms: int = 3_600_000, secret: bytes = SECRET) -> str:
    body = json.dumps({"sub": name, "exp": now_ms() + lives_ms}).encode().hex()
    return f"eyJ.{body}.{hmac.new(secret, body.encode(), hashlib.sha256).hexdigest()}"


def now_ms() -> int:
    return int(time.time() * 1_000)


def read_signed(token: str) -> dict[str, Any]:
    _, body, mac = token.split(".")
    if not hmac.compare_digest(mac, hmac.new(SECRET, body.encode(), hashlib.sha256).hexdigest()):
        raise CredentialsInvalid("unknown")
    claims: dict[str, Any] = json.loads(bytes.fromhex(body))
    return claims


def read_unsecured(token: str) -> dict[str, Any]:
    """The claims of a JSON Web Token without a signature (RFC 7519, section 6), as Java's own log-in module makes them."""
    head, body, rest = token.split(".")
    claims = [json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in (head, body)]
    if rest or claims[0] != {"alg": "none"}:
        raise CredentialsInvalid("unknown")
    return {"sub": claims[1]["sub"], "exp": int(claims[1]["exp"] * 1_000)}


class Issuer:
    """Validates what `signed` makes, and what Java makes unsigned; everybody has the role `admin`."""

    proves, mechanisms = "openid", ("OAUTHBEARER",)

    def recognises(self, credential: Credential) -> bool:
        return isinstance(credential, BearerToken) and credential.text.startswith("eyJ")

    async def authenticate(self, credential: Credential) -> Principal:
        assert isinstance(credential, BearerToken)
        claims = read_signed(credential.text) if credential.text.startswith("eyJ.") else read_unsecured(credential.text)
        principal = Principal(
            f"user:{claims['sub']}",
            PrincipalKind.USER,
            "openid",
            roles=frozenset(("admin",)),
            expires_at_ms=claims["exp"],
        )
        self.still_valid(principal)
        if credential.name not in ("", claims["sub"]):
            raise CredentialsInvalid("another_name")
        return principal

    def still_valid(self, principal: Principal) -> None:
        if principal.expired(now_ms()):
            raise TokenExpired("jti", principal.expires_at_ms or 0)


@pytest.fixture
def issued(kafka: Kafka) -> Kafka:
    """The node, with a chain that validates the issuer's tokens too."""
    node = kafka.node
    node.pipeline.chain = Chain([TokenProvider(node.tokens), UserProvider(node.users), Issuer()])
    return kafka


def first_message(token: str, name: str = "", extensions: str = "") -> bytes:
    return f"n,{f'a={name}' if name else ''},\x01auth=Bearer {token}\x01{extensions}\x01".encode()


async def begun(kafka: Kafka, version: int = 1) -> RawClient:
    client = await kafka.connect()
    assert (await client.call(HANDSHAKE, version, mechanism="OAUTHBEARER")).error_code == 0
    return client


async def identity_lines(kafka: Kafka) -> list[dict[str, Any]]:
    await kafka.node.stop()
    return [line for line in audited(kafka) if line["event"] == "identity"]


class TestNotOffered:
    async def test_while_nothing_validates_such_tokens(self, kafka: Kafka) -> None:
        client = await kafka.connect()
        answer = await client.call(HANDSHAKE, 1, mechanism="OAUTHBEARER")
        assert answer.error_code == UNSUPPORTED_MECHANISM
        assert answer.mechanisms == ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
        assert await client.closed()

    async def test_librdkafka_is_told_so(self, kafka: Kafka) -> None:
        told: list[KafkaError] = []
        client = admin_client(kafka, signed("alice"), told)
        while not told:
            await asyncio.to_thread(client.poll, 0.1)
        assert any("OAUTHBEARER" in error.str() for error in told)


class TestStates:
    @pytest.mark.parametrize("version", range(3))
    async def test_a_token(self, issued: Kafka, version: int) -> None:
        client = await begun(issued)
        answer = await client.call(AUTHENTICATE, version, auth_bytes=first_message(signed("alice", 60_000)))
        assert (answer.error_code, answer.auth_bytes) == (0, b"")
        if version:
            assert 50_000 < answer.session_lifetime / timedelta(milliseconds=1) <= 60_000
        assert await works(client)

    async def test_it_is_offered_beside_the_others(self, issued: Kafka) -> None:
        client = await issued.connect()
        offered = (await client.call(HANDSHAKE, 1, mechanism="OAUTHBEARER")).mechanisms
        assert offered == ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")

    async def test_its_own_name_and_extensions(self, issued: Kafka) -> None:
        client = await begun(issued)
        message = first_message(signed("alice"), "alice", "logicalCluster=lkc-1\x01")
        assert (await client.call(AUTHENTICATE, 2, auth_bytes=message)).error_code == 0

    @pytest.mark.parametrize("then", [b"\x01", b"", b"n,,\x01auth=Bearer x\x01\x01"])
    async def test_a_challenge_is_acknowledged_and_the_exchange_fails(self, issued: Kafka, then: bytes) -> None:
        """Whatever is said to the challenge: a second try is another connection's."""
        client = await begun(issued)
        answer = await client.call(AUTHENTICATE, 2, auth_bytes=first_message(signed("alice", secret=b"another")))
        assert (answer.error_code, json.loads(answer.auth_bytes)) == (0, {"status": "invalid_token"})
        assert not answer.session_lifetime
        answer = await client.call(AUTHENTICATE, 2, auth_bytes=then or first_message(signed("alice")))
        assert (answer.error_code, answer.auth_bytes) == (FAILED, b"")
        assert answer.error_message == "the credentials are not valid: check them, or ask for new ones"
        assert await client.closed()
        assert issued.count("refused_total", protocol="kafka", reason="unauthenticated") == 1
        assert [line["outcome"] for line in await identity_lines(issued)] == ["refused"]

    @pytest.mark.parametrize("token", [signed("alice", -1), "unheard-of", signed("alice")[:-1]])
    async def test_what_is_challenged(self, issued: Kafka, token: str) -> None:
        client = await begun(issued)
        answer = await client.call(AUTHENTICATE, 2, auth_bytes=first_message(token))
        assert json.loads(answer.auth_bytes) == {"status": "invalid_token"}

    async def test_somebody_else_s_token(self, issued: Kafka) -> None:
        client = await begun(issued)
        answer = await client.call(AUTHENTICATE, 2, auth_bytes=first_message(signed("alice"), "mallory"))
        assert json.loads(answer.auth_bytes) == {"status": "invalid_token"}

    @pytest.mark.parametrize("message", [b"", b"\x01", b"n,,\x01\x01", b"\0token\0x", b"n,,\x01auth=Bearer \xff\x01\x01"])
    async def test_what_is_no_such_message_fails_at_once(self, issued: Kafka, message: bytes) -> None:
        client = await begun(issued)
        assert (await client.call(AUTHENTICATE, 2, auth_bytes=message)).error_code == FAILED
        assert await client.closed()
        assert [line["reason"].split(":")[1] for line in await identity_lines(issued)] == [
            " the credentials are not valid (malformed)"
        ]

    async def test_a_request_in_the_middle_of_it(self, issued: Kafka) -> None:
        client = await begun(issued)
        await client.call(AUTHENTICATE, 2, auth_bytes=first_message("unheard-of"))
        client.send(METADATA, 12, topics=[])
        assert await client.closed()
        assert len(await identity_lines(issued)) == 2  # the token, and the request

    async def test_who_leaves_at_the_challenge_is_counted(self, issued: Kafka) -> None:
        client = await begun(issued)
        await client.call(AUTHENTICATE, 2, auth_bytes=first_message("unheard-of"))
        await client.close()
        await issued.node.stop()
        assert issued.count("refused_total", protocol="kafka", reason="unauthenticated") == 1

    async def test_without_headers(self, issued: Kafka) -> None:
        client = await begun(issued, version=0)
        client.write(first_message(signed("alice")))
        assert await client.frame() == b""
        assert await works(client)

    async def test_without_headers_and_wrong(self, issued: Kafka) -> None:
        client = await begun(issued, version=0)
        client.write(first_message("unheard-of"))
        assert json.loads(await client.frame()) == {"status": "invalid_token"}
        client.write(b"\x01")
        assert await client.closed()


class TestSessions:
    async def test_it_ends_with_the_token(self, issued: Kafka) -> None:
        client = await begun(issued)
        assert (await client.call(AUTHENTICATE, 2, auth_bytes=first_message(signed("alice", 300)))).error_code == 0
        with pytest.raises(Closed):
            await forever(client)
        [line] = await identity_lines(issued)
        assert "expired" in line["reason"]

    async def test_a_newer_token_of_the_same_name_goes_on(self, issued: Kafka) -> None:
        client = await begun(issued)
        await client.call(AUTHENTICATE, 2, auth_bytes=first_message(signed("alice", 60_000)))
        await client.call(HANDSHAKE, 1, mechanism="OAUTHBEARER")
        answer = await client.call(AUTHENTICATE, 2, auth_bytes=first_message(signed("alice", 600_000)))
        assert answer.error_code == 0
        assert answer.session_lifetime > timedelta(seconds=60)
        assert await works(client)

    async def test_one_of_another_name_does_not(self, issued: Kafka) -> None:
        client = await begun(issued)
        await client.call(AUTHENTICATE, 2, auth_bytes=first_message(signed("alice")))
        await client.call(HANDSHAKE, 1, mechanism="OAUTHBEARER")
        answer = await client.call(AUTHENTICATE, 2, auth_bytes=first_message(signed("mallory")))
        assert json.loads(answer.auth_bytes) == {"status": "invalid_token"}
        assert (await client.call(AUTHENTICATE, 2, auth_bytes=b"\x01")).error_code == FAILED
        [line] = await identity_lines(issued)
        assert (line["principal"], "another_principal" in line["reason"]) == ("user:alice", True)


def admin_client(kafka: Kafka, token: str, told: list[KafkaError], asked: list[str] | None = None) -> AdminClient:
    def give(_: str) -> tuple[str, float, str, dict[str, str]]:
        if asked is not None:
            asked.append(token)
        return token, time.time() + 3_600, "alice", {"logicalCluster": "lkc-1"}

    settings: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "OAUTHBEARER",
        "oauth_cb": give,
        "error_cb": told.append,
    }
    return AdminClient(settings)


class AiokafkaTokens(AbstractTokenProvider):
    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        return self._token

    def extensions(self) -> dict[str, str]:
        return {"logicalCluster": "lkc-1"}


class PythonTokens(PythonTokenProvider):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        self._token = token

    def token(self) -> str:
        return self._token

    def extensions(self) -> dict[str, str]:
        return {"logicalCluster": "lkc-1", "pool": "a"}


class TestForeignClients:
    async def test_librdkafka(self, issued: Kafka) -> None:
        told: list[KafkaError] = []
        asked: list[str] = []
        client = admin_client(issued, signed("alice"), told, asked)
        found = await asyncio.to_thread(lambda: client.list_topics(timeout=20))
        assert found.brokers
        assert asked
        assert not told

    async def test_librdkafka_with_a_wrong_token(self, issued: Kafka) -> None:
        told: list[KafkaError] = []
        client = admin_client(issued, signed("alice", secret=b"another"), told)
        while KafkaError._AUTHENTICATION not in [error.code() for error in told]:
            await asyncio.to_thread(client.poll, 0.1)
        assert any("invalid_token" in error.str() or "not valid" in error.str() for error in told)

    async def test_aiokafka(self, issued: Kafka) -> None:
        words = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"}
        tokens = AiokafkaTokens(signed("alice"))
        async with AIOKafkaProducer(bootstrap_servers=issued.bootstrap, sasl_oauth_token_provider=tokens, **words) as producer:
            assert (await producer.send_and_wait("orders", b"x")).offset == 0

    async def test_kafka_python(self, issued: Kafka) -> None:
        words = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"}

        def ask(token: str) -> Any:
            client = KafkaAdminClient(
                bootstrap_servers=issued.bootstrap,
                sasl_oauth_token_provider=PythonTokens(token),
                bootstrap_timeout_ms=1_000,
                **words,
            )
            try:
                return client.describe_cluster()
            finally:
                client.close()

        assert await asyncio.to_thread(ask, signed("alice"))
        with pytest.raises(PythonError):  # it tries again for the whole time
            await asyncio.to_thread(ask, signed("alice", secret=b"another"))

    @pytest.mark.services
    async def test_java(self, issued: Kafka, tmp_path: Path) -> None:
        """Its own module makes the tokens: a good one, and one that has expired, whose challenge it acknowledges."""
        module = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
        words = {"bootstrap.servers": issued.bootstrap, "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "OAUTHBEARER"}

        def list_topics(claims: str) -> str:
            path = write_properties(tmp_path / "client.properties", words | {"sasl.jaas.config": f"{module} {claims};"})
            tool = "org.apache.kafka.tools.TopicCommand"
            return run_java(tool, "--bootstrap-server", issued.bootstrap, "--command-config", str(path), "--list")

        topic = {"name": "orders", "num_partitions": 1, "replication_factor": 1, "assignments": [], "configs": []}
        await (await issued.client()).call(19, 5, topics=[topic], timeout=5_000)
        assert "orders" in await asyncio.to_thread(list_topics, 'unsecuredLoginStringClaim_sub="alice"')
        expired = 'unsecuredLoginStringClaim_sub="alice" unsecuredLoginLifetimeSeconds="-5"'
        with pytest.raises(AssertionError, match="credentials are not valid"):
            await asyncio.to_thread(list_topics, expired)
