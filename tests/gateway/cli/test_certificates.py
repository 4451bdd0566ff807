"""`sprawl certificates issue`, and a foreign Kafka client that comes in by what it wrote."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from gateway.cli.local_node import local_node
from gateway.cli.main import main
from tests.gateway.cli.conftest import Node

pytestmark = pytest.mark.services

SETTINGS = """
[listeners.http]
port = 0

[listeners.kafka]
port = 0
tls = "mutual"

[[policy.bindings]]
role = "admin"
principals = ["cert:device-7"]
"""


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node whose Kafka listener asks for a certificate."""
    home = tmp_path_factory.mktemp("certificates") / "home"
    home.mkdir(mode=0o700)
    (home / "sprawl.toml").write_text(SETTINGS)
    with local_node(home) as (profile, _):
        yield Node(home, profile)


def librdkafka(node: Node, pem: Path | None) -> dict[str, Any]:
    lines = (node.home / "librdkafka.conf").read_text().splitlines()
    written = dict(line.split("=", 1) for line in lines)
    shown = {} if pem is None else {"ssl.certificate.location": str(pem), "ssl.key.location": str(pem)}
    kept = {name: written[name] for name in ("bootstrap.servers", "ssl.ca.location", "partitioner")}
    return kept | shown | {"security.protocol": "ssl", "message.timeout.ms": 20_000}


def issued(node: Node, folder: Path, name: str) -> Path:
    out = folder / f"{name}.pem"
    (facts,) = node.rows("certificates", "issue", name, "--out", str(out), "--days", "1")
    assert (facts["principal"], facts["file"]) == (f"cert:{name}", str(out))
    assert out.stat().st_mode & 0o777 == 0o600
    return out


def produce(settings: dict[str, Any]) -> KafkaError | None:
    told: list[KafkaError | None] = []
    producer = Producer(settings)
    producer.produce("orders", b"hello", key="eu/7", on_delivery=lambda error, _: told.append(error))
    producer.flush(30)
    return told[0]


def trail(node: Node) -> list[dict[str, Any]]:
    lines = (node.home / "audit.jsonl").read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def test_a_kafka_client_comes_in_by_it_as_who_it_names(mutual: Node, tmp_path: Path) -> None:
    pem = issued(mutual, tmp_path, "device-7")
    assert produce(librdkafka(mutual, pem)) is None
    [record] = mutual.read("orders/eu/7")
    assert record["text"] == "hello"
    assert [line for line in trail(mutual) if line["resource"] == "certificate device-7" and "by user" in line["reason"]]
    until = time.monotonic() + 20  # a thread of the node writes the trail
    while not [line for line in trail(mutual) if line["action"] == "publish" and line["principal"] == "cert:device-7"]:
        assert time.monotonic() < until, "the publish is not audited"
        time.sleep(0.02)


def test_a_name_without_rights_is_known_and_may_nothing(mutual: Node, tmp_path: Path) -> None:
    refused = produce(librdkafka(mutual, issued(mutual, tmp_path, "device-8")))
    assert refused is not None
    assert refused.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_without_one_nobody_comes_in(mutual: Node) -> None:
    with pytest.raises(KafkaException):
        AdminClient(librdkafka(mutual, None)).list_topics(timeout=2)


def test_a_file_that_is_there_is_not_overwritten(mutual: Node, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    result = mutual.call("certificates", "issue", "device-7", "--out", str(tmp_path / "kept"))
    assert (result.exit_code, "not overwritten" in result.stderr) == (2, True)
    assert (tmp_path / "kept").read_text() == "mine"


@pytest.mark.parametrize(("name", "days"), [("", "1"), ("x" * 65, "1"), ("a\nb", "1"), ("x", "0"), ("x", "398")])
def test_what_no_certificate_can_say(mutual: Node, tmp_path: Path, name: str, days: str) -> None:
    result = mutual.call("certificates", "issue", name, "--days", days, "--out", str(tmp_path / "new.pem"))
    assert (result.exit_code, "no certificate was issued" in result.stderr) == (2, True)
    assert not (tmp_path / "new.pem").exists()


def test_without_a_node_or_with_another_ca_none_is_issued(tmp_path: Path) -> None:
    def issue() -> Any:
        arguments = ["certificates", "issue", "x", "--home", str(tmp_path), "--out", str(tmp_path / "new.pem")]
        return CliRunner().invoke(main, arguments)

    assert "no certificate was issued" in issue().stderr
    (tmp_path / "sprawl.toml").write_text('[tls]\nclient_ca = "theirs.pem"\n')
    assert "tls.client_ca" in issue().stderr
    assert not (tmp_path / "new.pem").exists()
