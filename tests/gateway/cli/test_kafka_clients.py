"""The files by which clients of the Kafka protocol find the node."""

from pathlib import Path

from gateway.cli.kafka_clients import save_kafka_clients

TOKEN = "sprawl_abcdefghijkl_" + "s" * 43


def read(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def test_both_files_are_private_and_say_the_same(tmp_path: Path) -> None:
    save_kafka_clients(tmp_path, "127.0.0.1:9092", encrypted=True, ca=tmp_path / "ca.pem", token=TOKEN)
    java, librdkafka = read(tmp_path / "kafka.properties"), read(tmp_path / "librdkafka.conf")
    for settings in (java, librdkafka):
        assert settings["bootstrap.servers"] == "127.0.0.1:9092"
        assert (settings["security.protocol"], settings["sasl.mechanism"]) == ("SASL_SSL", "PLAIN")
    assert f'password="{TOKEN}";' in java["sasl.jaas.config"]
    assert (java["ssl.truststore.type"], java["ssl.truststore.location"]) == ("PEM", str(tmp_path / "ca.pem"))
    assert (librdkafka["sasl.password"], librdkafka["ssl.ca.location"]) == (TOKEN, str(tmp_path / "ca.pem"))
    assert librdkafka["partitioner"] == "murmur2_random"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_without_tls_no_certificate_is_named(tmp_path: Path) -> None:
    save_kafka_clients(tmp_path, "127.0.0.1:9092", encrypted=False, ca=tmp_path / "ca.pem", token=TOKEN)
    for name in ("kafka.properties", "librdkafka.conf"):
        settings = read(tmp_path / name)
        assert settings["security.protocol"] == "SASL_PLAINTEXT"
        assert not any(key.startswith("ssl.") for key in settings)


def test_the_systems_certificates_are_trusted_where_no_ca_is_given(tmp_path: Path) -> None:
    save_kafka_clients(tmp_path, "kafka.example.org:9092", encrypted=True, ca=None, token=TOKEN)
    assert not any(key.startswith("ssl.") for key in read(tmp_path / "librdkafka.conf"))
