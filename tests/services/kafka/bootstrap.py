"""Where a Kafka client begins, in the words of each client library."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER = "token"  # a token is shown as the password; this is the name that goes with it


@dataclass(frozen=True)
class Bootstrap:
    """`address` is host:port; with a token: TLS by the authority `ca` and SASL PLAIN, without one: neither."""

    address: str
    token: str = ""
    ca: Path | None = None

    def librdkafka(self, **settings: object) -> dict[str, Any]:
        """For confluent-kafka: dots of a setting's name are written as underscores."""
        words = {"bootstrap.servers": self.address, "client.id": "referee", "socket.timeout.ms": 20_000}
        if self.token:
            words |= {"security.protocol": "SASL_SSL", "ssl.ca.location": str(self.ca)}
            words |= {"sasl.mechanism": "PLAIN", "sasl.username": USER, "sasl.password": self.token}
        return words | {name.replace("_", "."): value for name, value in settings.items()}

    def kafka_python(self, **settings: object) -> dict[str, Any]:
        words: dict[str, Any] = {"bootstrap_servers": self.address}
        if self.token:
            words |= {"security_protocol": "SASL_SSL", "ssl_cafile": str(self.ca)}
            words |= {"sasl_mechanism": "PLAIN", "sasl_plain_username": USER, "sasl_plain_password": self.token}
        return words | settings

    def aiokafka(self, **settings: object) -> dict[str, Any]:
        words: dict[str, Any] = {"bootstrap_servers": self.address}
        if self.token:
            words |= {"security_protocol": "SASL_SSL", "ssl_context": ssl.create_default_context(cafile=str(self.ca))}
            words |= {"sasl_mechanism": "PLAIN", "sasl_plain_username": USER, "sasl_plain_password": self.token}
        return words | settings

    def java(self, **settings: object) -> dict[str, str]:
        """Properties of a Java client: dots of a setting's name are written as underscores."""
        words = {"bootstrap.servers": self.address} | self.java_security()
        return words | {name.replace("_", "."): str(value) for name, value in settings.items()}

    def java_security(self, prefix: str = "") -> dict[str, str]:
        if not self.token:
            return {}
        login = f'org.apache.kafka.common.security.plain.PlainLoginModule required username="{USER}" password="{self.token}";'
        words = {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.jaas.config": login}
        words |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(self.ca)}
        return {prefix + name: value for name, value in words.items()}

    def java_file(self, path: Path, **settings: object) -> Path:
        """The properties as a file that Java's tools read."""
        return write_properties(path, self.java(**settings))


def write_properties(path: Path, properties: dict[str, str]) -> Path:
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    return path
