"""How clients of the Kafka protocol on this machine reach the node: two files in its home, mode 0600, beside the profile.

`kafka.properties` is what the Java tools take (`--command-config`), `librdkafka.conf` what kcat takes (`-F`) and every library
made of librdkafka. Both hold the token of the profile, so that it stays out of process arguments and shell history.
"""

from __future__ import annotations

from pathlib import Path

from security.files import PRIVATE_MODE, replace_file

PROPERTIES_NAME = "kafka.properties"
LIBRDKAFKA_NAME = "librdkafka.conf"
USER_NAME = "token"


def save_kafka_clients(home: Path, bootstrap: str, *, encrypted: bool, ca: Path | None, token: str) -> None:
    """`bootstrap` is host:port; `ca` None: the system's certificates are trusted."""
    security = "SASL_SSL" if encrypted else "SASL_PLAINTEXT"
    common = {"bootstrap.servers": bootstrap, "security.protocol": security, "sasl.mechanism": "PLAIN"}
    login = f'org.apache.kafka.common.security.plain.PlainLoginModule required username="{USER_NAME}" password="{token}";'
    # librdkafka's own default is CRC32: records of a key would not be where everybody else's of that key are.
    librdkafka = {"sasl.username": USER_NAME, "sasl.password": token, "partitioner": "murmur2_random"}
    java = {"sasl.jaas.config": login}
    if encrypted and ca is not None:
        java |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(ca)}
        librdkafka |= {"ssl.ca.location": str(ca)}
    for name, settings in ((PROPERTIES_NAME, java), (LIBRDKAFKA_NAME, librdkafka)):
        text = "".join(f"{key}={value}\n" for key, value in (common | settings).items())
        replace_file(home / name, text.encode(), PRIVATE_MODE)
