"""The first screen of a node: where it listens, how to use it, where everything lies. And the profile behind it.

The admin token goes to the terminal once and to the profile (mode 0600); never into a file that stdout was redirected to, and
never into a log.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli.connection import HOME_DEFAULT
from gateway.cli.display import print_json
from gateway.cli.kafka_clients import LIBRDKAFKA_NAME, PROPERTIES_NAME, save_kafka_clients
from gateway.cli.profile import HEADER_NAME, Profile, load_profile, save_profile

if TYPE_CHECKING:
    from gateway.app import Node
    from gateway.config import Config

# What a wildcard address is reached by from the same machine; the development certificate names both.
_REACHED_BY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  compared with, not bound


@dataclass(frozen=True, slots=True)
class Welcome:
    """Facts of a started node. `new_token` is there at the very first start only."""

    url: str
    home: Path
    ca: Path | None
    data: Path
    keys: Path
    audit: Path
    profile: Path
    profile_has_token: bool
    new_token: str | None = field(default=None, repr=False)
    kafka: str | None = None

    @classmethod
    def of(cls, node: Node, config: Config) -> Welcome:
        """Writes the profile: the new token, or the one it had; the address as it is now."""
        home = Path(config.node.home)
        url = f"{'http' if config.listeners.http.plain else 'https'}://{_host_and_port(*node.addresses['http'][:2])}"
        ca = None if config.tls.certificate else Path(config.node.certs) / "ca.pem"  # else the system's CAs are trusted
        token = node.admin_token
        if token is None and (before := load_profile(home)) is not None:
            token = before.token
        trusted = ca.resolve() if ca else None
        kafka = _host_and_port(*node.addresses["kafka"][:2]) if "kafka" in node.addresses else None
        encrypted = not config.listeners.kafka.plain
        listener = f"{'SASL_SSL' if encrypted else 'SASL_PLAINTEXT'}://{kafka}" if kafka else None
        profile = save_profile(home, Profile(url, trusted, token, Path(config.node.data).resolve(), listener))
        if kafka is not None and token is not None:
            save_kafka_clients(home, kafka, encrypted=encrypted, ca=trusted, token=token)
        return cls(
            url=url,
            home=home,
            ca=ca,
            data=Path(config.node.data),
            keys=Path(config.node.keys),
            audit=Path(config.node.audit),
            profile=profile,
            profile_has_token=token is not None,
            new_token=node.admin_token,
            kafka=kafka,
        )

    def show(self, *, as_json: bool) -> None:
        if as_json:
            print_json(self.facts())
            return
        for line in self.lines(secret_allowed=sys.stdout.isatty()):
            click.echo(line)

    def facts(self) -> dict[str, object]:
        """For programs; a secret is never among them."""
        return {
            "version": version("sprawl-server"),
            "url": self.url,
            "websocket_url": "ws" + self.url.removeprefix("http") + "/v1/ws",
            "kafka": self.kafka,
            "first_start": self.new_token is not None,
            "profile": str(self.profile) if self.profile_has_token else None,
            "ca": str(self.ca) if self.ca else None,
            "home": str(self.home),
            "data": str(self.data),
            "keys": str(self.keys),
            "audit": str(self.audit),
        }

    def lines(self, *, secret_allowed: bool) -> list[str]:
        return [
            click.style(f"Sprawl {version('sprawl-server')} is running.", bold=True),
            "",
            *self._where(),
            "",
            *self._token(secret_allowed),
            "",
            *self._try_it(),
            "",
            f"{_name('stop')}{'Ctrl-C'}",
            "",
        ]

    def _where(self) -> list[str]:
        protection = "plain, on loopback only" if self.url.startswith("http://") else "TLS"
        return [
            f"{_name('listens')}{click.style(self.url, fg='green')}  REST, Server-Sent Events, WebSocket; {protection}",
            *([f"{_name('')}{click.style(self.kafka, fg='green')}  Kafka protocol"] if self.kafka else []),
            f"{_name('data')}{self.data}  every record sealed with AES-256-GCM",
            f"{_name('keys')}{self.keys}  mode 0600; back them up apart from the data, which nothing else opens",
            f"{_name('audit')}{self.audit}",
        ]

    def _token(self, secret_allowed: bool) -> list[str]:
        if self.new_token is None and not self.profile_has_token:
            return [
                f"{_name('token')}{self.profile} holds none: give yours by --token-file or SPRAWL_TOKEN",
            ]
        if self.new_token is None:
            return [f"{_name('token')}the one in {self.profile}, from the first start"]
        kept = f"{_name('')}kept in {self.profile} (mode 0600) for `sprawl` and curl on this machine"
        if not secret_allowed:
            return [f"{_name('admin token')}not shown, this is no terminal", kept]
        return [f"{_name('admin token')}{click.style(self.new_token, fg='yellow')}  shown once", kept]

    def _try_it(self) -> list[str]:
        sprawl, home = _as_called(), "" if self.home == HOME_DEFAULT else f" --home {shlex.quote(str(self.home))}"
        trust = f"--cacert {shlex.quote(str(self.ca))} " if self.ca and self.url.startswith("https://") else ""
        curl = f"curl {trust}-H @{shlex.quote(str(self.home / HEADER_NAME))}"
        return [
            f"{_name('publish')}{sprawl} publish orders/eu/7 '{{\"amount\": 12}}'{home}",
            f"{_name('subscribe')}{sprawl} subscribe orders --from beginning{home}",
            f'{_name("or by curl")}{curl} {self.url}/v1/records/orders/eu/7 --json \'{{"value": {{"amount": 12}}}}\'',
            *([f"{_name('or by Kafka')}{self._kcat()}"] if self.kafka and self.profile_has_token else []),
        ]

    def _kcat(self) -> str:
        return (
            f"kcat -F {shlex.quote(str(self.home / LIBRDKAFKA_NAME))} -C -t orders   (Java tools: {self.home / PROPERTIES_NAME})"
        )


def _host_and_port(host: str, port: int) -> str:
    host = _REACHED_BY.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _name(text: str) -> str:
    return click.style(f"  {text:<13}", dim=True)


def _as_called() -> str:
    """The command as it was typed, so that the lines work in the same shell."""
    return shlex.quote(sys.argv[0]) if sys.argv[0].endswith("/sprawl") else "sprawl"
