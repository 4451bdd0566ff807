"""Users by Kafka's own admin API, and their log-in by SCRAM, with librdkafka as the foreign client."""

import asyncio
import hashlib
from typing import Any

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from security.identity.scram import ITERATIONS_MAX, ITERATIONS_MIN

DESCRIBE, ALTER = (50, 0), (51, 0)
SHA256, SHA512 = 1, 2
PASSWORD = b"correct horse"
UNSUPPORTED_MECHANISM, NOT_FOUND, DUPLICATE, UNACCEPTABLE, CLUSTER_REFUSED = 33, 91, 92, 93, 31


def upsertion(name: str, mechanism: int = SHA256, iterations: int = ITERATIONS_MIN, **changed: Any) -> dict[str, Any]:
    digest = "sha512" if mechanism == SHA512 else "sha256"
    salted = hashlib.pbkdf2_hmac(digest, PASSWORD, b"salt", max(iterations, 1))
    return {"name": name, "mechanism": mechanism, "iterations": iterations, "salt": b"salt", "salted_password": salted} | changed


async def alter(client: Any, upsertions: list[Any] | None = None, deletions: list[Any] | None = None) -> dict[str, int]:
    answer = await client.call(*ALTER, upsertions=upsertions or [], deletions=deletions or [])
    return {result.user: result.error_code.value for result in answer.results}


async def described(client: Any, *names: str) -> dict[str, tuple[int, dict[int, int]]]:
    answer = await client.call(*DESCRIBE, users=[{"name": name} for name in names] or None)
    assert answer.error_code.value == 0
    return {
        result.user: (result.error_code.value, {info.mechanism: info.iterations for info in result.credential_infos})
        for result in answer.results
    }


async def test_the_life_of_a_credential(kafka: Any) -> None:
    client = await kafka.client()
    assert await alter(client, [upsertion("alice"), upsertion("alice", SHA512), upsertion("bob")]) == {"alice": 0, "bob": 0}
    assert await described(client) == {"alice": (0, {SHA256: 4096, SHA512: 4096}), "bob": (0, {SHA256: 4096})}
    assert await alter(client, [upsertion("bob", iterations=8192)], [{"name": "alice", "mechanism": SHA256}]) == {
        "alice": 0,
        "bob": 0,
    }
    assert await described(client, "alice", "bob") == {"alice": (0, {SHA512: 4096}), "bob": (0, {SHA256: 8192})}
    assert await alter(client, [], [{"name": "alice", "mechanism": SHA512}, {"name": "bob", "mechanism": SHA256}]) == {
        "alice": 0,
        "bob": 0,
    }
    assert await described(client) == {}


async def test_what_cannot_be_is_refused_user_by_user(kafka: Any) -> None:
    client = await kafka.client()
    wrong = [
        upsertion(""),
        upsertion("new\nline"),
        upsertion("few", iterations=ITERATIONS_MIN - 1),
        upsertion("many", iterations=ITERATIONS_MAX + 1),
        upsertion("short", salted_password=b"short"),
        upsertion("saltless", salt=b""),
        upsertion("sha-1", 0),
        upsertion("sha-3", 3),
        upsertion("twice"),
        upsertion("twice"),
        upsertion("fine"),
    ]
    answers = await alter(client, wrong, [{"name": "nobody", "mechanism": SHA256}, {"name": "sha-0", "mechanism": 0}])
    assert answers == {
        **dict.fromkeys(("", "new\nline", "few", "many", "short", "saltless"), UNACCEPTABLE),
        **dict.fromkeys(("sha-1", "sha-3", "sha-0"), UNSUPPORTED_MECHANISM),
        "twice": DUPLICATE,
        "nobody": NOT_FOUND,
        "fine": 0,
    }
    assert await described(client, "fine", "nobody", "fine") == {"fine": (DUPLICATE, {}), "nobody": (NOT_FOUND, {})}
    assert list(await described(client)) == ["fine"]


async def test_who_may_not_is_refused(kafka: Any) -> None:
    client = await kafka.client(kafka.token("all"))
    answer = await client.call(*DESCRIBE, users=None)
    assert (answer.error_code.value, answer.results) == (CLUSTER_REFUSED, ())
    assert await alter(client, [upsertion("alice")]) == {"alice": CLUSTER_REFUSED}
    assert kafka.node.users.find("alice") is None


async def create_orders(client: Any) -> None:
    topic = {"name": "orders", "num_partitions": 1, "replication_factor": 1, "assignments": [], "configs": []}
    (result,) = (await client.call(19, 5, topics=[topic], timeout=5_000)).topics
    assert result.error_code.value == 0


def settings(kafka: Any, mechanism: str, name: str, password: str) -> dict[str, str]:
    return {
        "bootstrap.servers": kafka.bootstrap,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": mechanism,
        "sasl.username": name,
        "sasl.password": password,
    }


def topics_seen(configuration: dict[str, str]) -> set[str]:
    return set(AdminClient(configuration).list_topics(timeout=10).topics)


def refused(configuration: dict[str, str]) -> bool:
    """librdkafka tries for ever: what it was told is known by its callback."""
    told: list[int] = []
    client = AdminClient(configuration | {"error_cb": lambda error: told.append(error.code())})
    while not told:
        client.poll(0.1)
    return KafkaError._AUTHENTICATION in told


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_librdkafka_makes_a_user_who_then_logs_in(kafka: Any, mechanism: str) -> None:
    client = await kafka.client()
    await create_orders(client)
    admin = AdminClient(settings(kafka, "PLAIN", "token", kafka.admin))
    info = ScramCredentialInfo(ScramMechanism[mechanism.replace("-", "_")], 8192)
    name = "al,i=ce"  # RFC 5802 writes these as =2C and =3D
    made = admin.alter_user_scram_credentials([UserScramCredentialUpsertion(name, info, PASSWORD, b"salt")])
    assert await asyncio.to_thread(made[name].result, 5) is None

    assert await asyncio.to_thread(topics_seen, settings(kafka, mechanism, name, PASSWORD.decode())) == set()  # no rights, but in
    for wrong in (settings(kafka, mechanism, name, "wrong horse"), settings(kafka, mechanism, "mallory", PASSWORD.decode())):
        assert await asyncio.to_thread(refused, wrong)

    gone = admin.alter_user_scram_credentials([UserScramCredentialDeletion(name, info.mechanism)])
    assert await asyncio.to_thread(gone[name].result, 5) is None
    assert await asyncio.to_thread(refused, settings(kafka, mechanism, name, PASSWORD.decode()))


async def test_roles_of_a_user_count(kafka: Any) -> None:
    client = await kafka.client()
    await create_orders(client)
    await asyncio.to_thread(kafka.node.users.create, "etl", ["all"], PASSWORD.decode())
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
        assert await asyncio.to_thread(topics_seen, settings(kafka, mechanism, "etl", PASSWORD.decode())) == {"orders"}
