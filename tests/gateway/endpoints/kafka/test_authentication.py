"""Who a connection belongs to: PLAIN with a token, SCRAM, a client certificate; sessions that end, and are proved again."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from security.certificates import ensure_development_ca, issue_client
from tests.gateway.conftest import until
from tests.gateway.endpoints.kafka.conftest import Closed, Kafka, RawClient

METADATA, HANDSHAKE, AUTHENTICATE = 3, 17, 36
ILLEGAL_STATE, UNSUPPORTED_MECHANISM, FAILED = 34, 33, 58


def audited(kafka: Kafka) -> list[dict[str, Any]]:
    path = Path(kafka.node.config.node.audit)
    return [json.loads(line) for line in path.read_text().splitlines()]


async def works(client: RawClient) -> bool:
    return bool((await client.call(METADATA, 12, topics=[])).cluster_id)


async def forever(client: RawClient) -> None:
    while True:
        await client.call(METADATA, 12, topics=[])


async def scram_login(client: RawClient, name: str, password: str) -> Any:
    """SCRAM-SHA-256 as a client goes through it (RFC 5802, section 3); the answer to its proof."""
    await client.call(HANDSHAKE, 1, mechanism="SCRAM-SHA-256")
    bare = f"n={name},r=abc"
    server_first = (await client.call(AUTHENTICATE, 2, auth_bytes=f"n,,{bare}".encode())).auth_bytes.decode()
    nonce, salt, iterations = (part[2:] for part in server_first.split(",", 2))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
    key = hmac.digest(salted, b"Client Key", "sha256")
    signed = f"{bare},{server_first},c=biws,r={nonce}"
    signature = hmac.digest(hashlib.sha256(key).digest(), signed.encode(), "sha256")
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()
    return await client.call(AUTHENTICATE, 2, auth_bytes=f"c=biws,r={nonce},p={proof}".encode())


class TestPlain:
    @pytest.mark.parametrize("version", range(3))
    async def test_a_token_as_password(self, kafka: Kafka, version: int) -> None:
        client = await kafka.connect()
        offered = await client.call(HANDSHAKE, 1, mechanism="PLAIN")
        assert (offered.error_code, offered.mechanisms) == (0, ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"))
        answer = await client.call(AUTHENTICATE, version, auth_bytes=f"\0token\0{kafka.admin}".encode())
        assert (answer.error_code, answer.auth_bytes) == (0, b"")
        assert await works(client)

    async def test_without_headers(self, kafka: Kafka) -> None:
        """SaslHandshake 0: the tokens come as they are (before KIP-152)."""
        client = await kafka.connect()
        assert (await client.call(HANDSHAKE, 0, mechanism="PLAIN")).error_code == 0
        client.write(f"\0token\0{kafka.admin}".encode())
        assert await client.frame() == b""
        assert await works(client)

    async def test_without_headers_and_wrong(self, kafka: Kafka) -> None:
        client = await kafka.connect()
        await client.call(HANDSHAKE, 0, mechanism="PLAIN")
        client.write(b"\0token\0sprawl_no_such_token")
        assert await client.closed()

    @pytest.mark.parametrize("name", ["", "token"])
    async def test_names_that_a_token_goes_by(self, kafka: Kafka, name: str) -> None:
        assert (await (await kafka.connect()).login(kafka.admin, name)).error_code == 0

    async def test_its_own_name(self, kafka: Kafka) -> None:
        token = kafka.token("all")
        name = f"token:{token.split('_')[1]}"
        assert (await (await kafka.connect()).login(token, name)).error_code == 0
        assert (await (await kafka.connect()).login(kafka.admin, name)).error_code == FAILED

    @pytest.mark.parametrize(
        "message",
        [b"", b"\0", b"no separators", b"\0token\0", b"\0token\0wrong", b"\0token\0sprawl_x_y", b"\0\xff\0\xff", b"a\0token\0x"],
    )
    async def test_what_is_wrong_is_answered_then_closed(self, kafka: Kafka, message: bytes) -> None:
        client = await kafka.connect()
        await client.call(HANDSHAKE, 1, mechanism="PLAIN")
        answer = await client.call(AUTHENTICATE, 2, auth_bytes=message)
        assert answer.error_code == FAILED
        assert answer.error_message == "the credentials are not valid: check them, or ask for new ones"
        assert await client.closed()
        assert kafka.count("refused_total", protocol="kafka", reason="unauthenticated") == 1

    async def test_a_refusal_is_audited_and_holds_no_secret(self, kafka: Kafka) -> None:
        client = await kafka.connect()
        await client.login("sprawl_guessed_secret")
        assert await client.closed()
        await kafka.node.stop()
        lines = [line for line in audited(kafka) if line["event"] == "identity"]
        assert [(line["outcome"], line["reason"].split(":")[0]) for line in lines] == [("refused", "kafka")]
        assert "guessed" not in str(audited(kafka))

    async def test_every_refusal_is_counted_and_audited_once(self, kafka: Kafka) -> None:
        """Whatever is wrong: one line with the peer, one count."""
        wrong: list[tuple[str, list[tuple[int, int, dict[str, Any]]]]] = [
            ("mechanism", [(HANDSHAKE, 1, {"mechanism": "GSSAPI"})]),
            ("mechanism", [(HANDSHAKE, 0, {"mechanism": ""})]),
            ("sasl-state", [(AUTHENTICATE, 2, {"auth_bytes": b"\0token\0x"})]),
            ("sasl-state", [(HANDSHAKE, 1, {"mechanism": "PLAIN"})] * 2),
            ("unauthenticated", [(HANDSHAKE, 1, {"mechanism": "PLAIN"}), (AUTHENTICATE, 2, {"auth_bytes": b"\0token\0x"})]),
            ("unauthenticated", [(HANDSHAKE, 1, {"mechanism": "PLAIN"}), (AUTHENTICATE, 2, {"auth_bytes": b"\xff"})]),
            ("unauthenticated", [(HANDSHAKE, 1, {"mechanism": "SCRAM-SHA-256"}), (AUTHENTICATE, 2, {"auth_bytes": b"?"})]),
            ("unauthenticated", [(HANDSHAKE, 1, {"mechanism": "PLAIN"}), (METADATA, 12, {"topics": []})]),
            ("unauthenticated", [(METADATA, 12, {"topics": []})]),
        ]
        counts: Counter[str] = Counter()
        peers = []
        for reason, calls in wrong:
            client = await kafka.connect()
            peers.append("{}:{}".format(*client.writer.get_extra_info("sockname")[:2]))
            for api, version, values in calls:
                client.send(api, version, **values)
            await client.reader.read()
            counts[reason] += 1
            assert kafka.count("refused_total", protocol="kafka", reason=reason) == counts[reason], (reason, calls)
        await kafka.node.stop()
        lines = [line for line in audited(kafka) if line["event"] == "identity"]
        assert [(line["resource"], line["outcome"]) for line in lines] == [(peer, "refused") for peer in peers]

    async def test_who_guesses_on_many_connections_is_not_heard_any_more(self, open_kafka: Any) -> None:
        """Disconnected without an answer, which clients retry: the next password may be the right one."""
        guessing = {"failed_logins__failures_free": 2, "failed_logins__delay_ms": 60_000, "failed_logins__delay_ms_max": 60_000}
        kafka = await open_kafka(**guessing)
        for version in (1, 1, 1, 0):
            client = await kafka.connect()
            await client.call(HANDSHAKE, version, mechanism="SCRAM-SHA-256")
            if version:
                nonce = (await client.call(AUTHENTICATE, 2, auth_bytes=b"n,,n=alice,r=abc")).auth_bytes.split(b",")[0]
            else:
                client.write(b"n,,n=alice,r=abc")
                nonce = (await client.frame()).split(b",")[0]
            proof = b"c=biws," + nonce + b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
            if version:
                client.send(AUTHENTICATE, 2, auth_bytes=proof)
            else:
                client.write(proof)
            await client.closed()
        assert kafka.count("refused_total", protocol="kafka", reason="unauthenticated") == 3  # the raw one among them
        assert kafka.count("refused_total", protocol="kafka", reason="logins-throttled") == 1
        assert kafka.count("logins_throttled_total", protocol="kafka", outcome="refused") == 2
        assert await works(await kafka.client())  # another name

    async def test_who_has_the_right_password_elsewhere_never_waits(self, open_kafka: Any) -> None:
        """Whatever is tried at one address; and where it is tried, the right one waits for its turn like the wrong ones."""
        guessing = {"failed_logins__failures_free": 1, "failed_logins__delay_ms": 60_000, "failed_logins__delay_ms_max": 60_000}
        kafka = await open_kafka(**guessing, failed_logins__name_failures_free=1, failed_logins__address_failures_free=1)
        await asyncio.to_thread(kafka.node.users.create, "alice", ["all"], "correct horse")
        trying = asyncio.create_task(scram_login(await kafka.connect(), "alice", "wrong horse"))  # answered in a minute
        await until(lambda: kafka.node.pipeline.failed_logins.stats().pairs == 1)
        with pytest.raises(Closed):
            await scram_login(await kafka.connect(), "alice", "correct horse")
        elsewhere = RawClient(*await asyncio.open_connection(kafka.host, kafka.port, local_addr=("127.0.0.2", 0)))
        assert (await scram_login(elsewhere, "alice", "correct horse")).error_code == 0
        assert await works(elsewhere)
        await elsewhere.close()
        assert kafka.count("logins_throttled_total", protocol="kafka", outcome="delayed") == 0
        assert kafka.count("logins_throttled_total", protocol="kafka", outcome="refused") == 1
        assert b"sprawl_failed_logins_pairs 1.0" in kafka.node.metrics.render()
        trying.cancel()

    async def test_another_mechanism(self, kafka: Kafka) -> None:
        client = await kafka.connect()
        answer = await client.call(HANDSHAKE, 1, mechanism="GSSAPI")
        assert (answer.error_code, "PLAIN" in answer.mechanisms) == (UNSUPPORTED_MECHANISM, True)
        assert await client.closed()

    async def test_out_of_order(self, kafka: Kafka) -> None:
        client = await kafka.connect()
        assert (await client.call(AUTHENTICATE, 2, auth_bytes=b"\0token\0x")).error_code == ILLEGAL_STATE
        assert await client.closed()
        client = await kafka.connect()
        await client.call(HANDSHAKE, 1, mechanism="PLAIN")
        assert (await client.call(HANDSHAKE, 1, mechanism="PLAIN")).error_code == ILLEGAL_STATE
        assert await client.closed()
        client = await kafka.connect()
        await client.call(HANDSHAKE, 1, mechanism="PLAIN")
        client.send(METADATA, 12, topics=[])  # in the middle of an exchange
        assert await client.closed()

    async def test_a_request_pipelined_behind_a_refusal_is_not_served(self, kafka: Kafka) -> None:
        client = await kafka.connect()
        await client.call(HANDSHAKE, 1, mechanism="PLAIN")
        client.send(AUTHENTICATE, 2, auth_bytes=b"\0token\0wrong")
        client.send(METADATA, 12, topics=None)
        assert (await client.receive(AUTHENTICATE, 2, 2)).error_code == FAILED
        assert await client.closed()


class TestSessions:
    async def test_a_revoked_token_ends_the_connection(self, kafka: Kafka) -> None:
        token = kafka.token("all")
        client = await kafka.client(token)
        assert await works(client)
        kafka.node.tokens.revoke(token.split("_")[1])
        client.send(METADATA, 12, topics=[])
        assert await client.closed()
        assert kafka.count("refused_total", protocol="kafka", reason="unauthenticated") == 1
        await kafka.node.stop()
        [line] = [line for line in audited(kafka) if line["event"] == "identity"]
        assert (line["credential"], "was revoked" in line["reason"]) == (token.split("_")[1], True)

    async def test_the_lifetime_is_told(self, kafka: Kafka) -> None:
        answer = await (await kafka.connect()).login(kafka.token("all", ttl_ms=60_000))
        assert 50_000 < answer.session_lifetime / timedelta(milliseconds=1) <= 60_000
        assert not (await (await kafka.connect()).login(kafka.admin)).session_lifetime

    async def test_a_session_that_has_ended(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__reauthentication_ms_max=1)
        client = await kafka.connect()
        assert (await client.login(kafka.admin)).session_lifetime == timedelta(milliseconds=1)
        with pytest.raises(Closed):
            await forever(client)  # a millisecond is not over at once

    async def test_proved_again_on_the_same_connection(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__reauthentication_ms_max=3_600_000)
        client = await kafka.client()
        assert await works(client)
        assert (await client.login(kafka.admin)).error_code == 0
        assert await works(client)

    async def test_not_as_somebody_else(self, kafka: Kafka) -> None:
        client = await kafka.client()
        assert (await client.login(kafka.token("all"))).error_code == FAILED
        assert await client.closed()
        assert kafka.count("refused_total", protocol="kafka", reason="unauthenticated") == 1
        await kafka.node.stop()
        [line] = [line for line in audited(kafka) if line["event"] == "identity"]
        assert (line["outcome"], "another_principal" in line["reason"]) == ("refused", True)
        assert line["credential"] == kafka.admin.split("_")[1]  # who the connection belonged to

    async def test_not_by_another_mechanism(self, kafka: Kafka) -> None:
        client = await kafka.client()
        await client.call(HANDSHAKE, 1, mechanism="SCRAM-SHA-256")
        client.send(METADATA, 12, topics=[])
        assert await client.closed()


class TestScram:
    @pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
    async def test_a_message_that_is_none(self, kafka: Kafka, mechanism: str) -> None:
        for message in (b"", b"n,,", b"\xff" * 2_000, b"n,,n=alice,r="):
            client = await kafka.connect()
            await client.call(HANDSHAKE, 1, mechanism=mechanism)
            assert (await client.call(AUTHENTICATE, 2, auth_bytes=message)).error_code == FAILED
            assert await client.closed()

    async def test_an_unknown_name_goes_all_the_way(self, kafka: Kafka) -> None:
        client = await kafka.connect()
        await client.call(HANDSHAKE, 1, mechanism="SCRAM-SHA-256")
        first = await client.call(AUTHENTICATE, 2, auth_bytes=b"n,,n=nobody,r=abc")
        assert first.error_code == 0
        nonce = first.auth_bytes.split(b",")[0]
        proof = b"c=biws," + nonce + b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        assert (await client.call(AUTHENTICATE, 2, auth_bytes=proof)).error_code == FAILED
        assert await client.closed()


class TestCertificates:
    async def connect(self, kafka: Kafka, context: ssl.SSLContext) -> RawClient:
        return RawClient(*await asyncio.open_connection(kafka.host, kafka.port, ssl=context, server_hostname="localhost"))

    def trusting(self, kafka: Kafka) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(Path(kafka.node.config.node.certs) / "ca.pem"))

    async def test_tls_and_a_token(self, open_kafka: Any) -> None:
        kafka = await open_kafka(listeners__kafka__plain=False)
        client = await self.connect(kafka, self.trusting(kafka))
        assert (await client.login(kafka.admin)).error_code == 0
        names = [{"name": f"{number:0200}"} for number in range(2_000)]  # larger than a TLS record, and than the buffer
        answer = await client.call(METADATA, 9, topics=names, allow_auto_topic_creation=False)
        assert len(answer.topics) == 2_000
        await client.close()

    async def test_a_certificate_alone(self, open_kafka: Any, tmp_path: Path) -> None:
        binding = '[{"role": "admin", "principals": ["cert:device-*"]}]'
        kafka = await open_kafka(listeners__kafka__plain=False, listeners__kafka__tls="mutual-optional", policy__bindings=binding)
        folder = Path(kafka.node.config.node.certs)
        paths = ensure_development_ca(folder, [], datetime.now(UTC))
        certificate, key = issue_client(paths, "device-7", 1, datetime.now(UTC))
        (tmp_path / "device.pem").write_bytes(certificate + key)
        context = self.trusting(kafka)
        context.load_cert_chain(tmp_path / "device.pem")
        client = await self.connect(kafka, context)
        answer = await client.call(METADATA, 12, topics=[{"name": "orders"}])
        assert answer.topics[0].error_code == 0  # made, as administrators may
        assert (await client.call(HANDSHAKE, 1, mechanism="PLAIN")).error_code == ILLEGAL_STATE  # it is somebody already
        assert await client.closed()
        await client.close()

    async def test_a_certificate_that_names_nobody(self, open_kafka: Any, tmp_path: Path) -> None:
        """TLS believes it, the node does not know who it is."""
        kafka = await open_kafka(listeners__kafka__plain=False, listeners__kafka__tls="mutual-optional")
        paths = ensure_development_ca(Path(kafka.node.config.node.certs), [], datetime.now(UTC))
        authority = x509.load_pem_x509_certificate(paths.ca.read_bytes())
        signer = serialization.load_pem_private_key(paths.ca_key.read_bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        nameless = x509.CertificateBuilder(
            authority.subject, x509.Name([]), key.public_key(), 7, now - timedelta(hours=1), now + timedelta(hours=1)
        ).add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        encoding = serialization.Encoding.PEM
        secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (tmp_path / "nobody.pem").write_bytes(secret + nameless.sign(signer, hashes.SHA256()).public_bytes(encoding))
        context = self.trusting(kafka)
        context.load_cert_chain(tmp_path / "nobody.pem")
        client = await self.connect(kafka, context)
        client.send(METADATA, 12, topics=[])
        assert await client.closed()
        await client.close()
        assert kafka.count("refused_total", protocol="kafka", reason="unauthenticated") == 1
        await kafka.node.stop()
        [line] = [line for line in audited(kafka) if line["event"] == "identity"]
        assert (line["outcome"], "no common name" in line["reason"]) == ("refused", True)

    async def test_without_a_certificate_where_one_may_be_given(self, open_kafka: Any) -> None:
        kafka = await open_kafka(listeners__kafka__plain=False, listeners__kafka__tls="mutual-optional")
        client = await self.connect(kafka, self.trusting(kafka))
        client.send(METADATA, 12, topics=[])
        assert await client.closed()
