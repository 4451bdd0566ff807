"""Which node, trusted how, as whom: from flags, then the environment, then the profile in the node's home.

A token belongs to one node: the profile's token goes to the profile's URL and nowhere else, and no token goes over plain HTTP
to another machine.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.cli.failures import Unusable
from gateway.cli.profile import load_profile

if TYPE_CHECKING:
    import ssl

URL_DEFAULT = "https://127.0.0.1:8443"
HOME_DEFAULT = Path(".sprawl")
TOKEN_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Connection:
    url: str
    ca: Path | None = None
    token: str | None = field(default=None, repr=False)
    client_cert: Path | None = None
    client_key: Path | None = None
    kafka: str | None = None
    """The Kafka listener, as `SASL_SSL://host:port`; known of a node on this machine."""

    @property
    def websocket_url(self) -> str:
        return "ws" + self.url.removeprefix("http") + "/v1/ws"

    @property
    def encrypted(self) -> bool:
        return self.url.startswith("https://")

    @property
    def is_loopback(self) -> bool:
        """Then no proxy of the environment is asked: it could not reach this machine's loopback."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    def tls(self) -> ssl.SSLContext:
        """Certificates and host name are always checked; there is no switch to turn that off."""
        import ssl

        try:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        except (OSError, ssl.SSLError) as error:
            raise Unusable(f"the CA file {self.ca} cannot be used", str(error), "give the node's ca file by --ca") from None
        if self.client_cert is not None:
            try:
                context.load_cert_chain(self.client_cert, self.client_key, password=_refuse_password)
            except (OSError, ssl.SSLError, ValueError) as error:
                raise Unusable(f"the client certificate {self.client_cert} cannot be used", str(error)) from None
        return context


def resolve_connection(
    url: str | None,
    ca: Path | None,
    token_file: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    home: Path | None,
) -> Connection:
    """Flags win over SPRAWL_URL and SPRAWL_CA (which click has read), and SPRAWL_TOKEN; those over the profile."""
    profile = load_profile(home or HOME_DEFAULT)
    if profile is None and home is not None and url is None:
        raise Unusable(
            f"no node has written a profile in {home}", what_to_do=f"start one with `sprawl serve --home {home}`, or give --url"
        )
    own = profile is not None and (url is None or url.rstrip("/") == profile.url)
    token = read_token_file(token_file) if token_file else os.environ.get("SPRAWL_TOKEN")
    if token is None and client_cert is None and profile is not None and own:
        token = profile.token
    if ca is None and profile is not None and own:
        ca = profile.ca
    chosen = (url or (profile.url if profile else URL_DEFAULT)).rstrip("/")
    _check_url(chosen, with_token=token is not None)
    kafka = profile.kafka if profile is not None and own else None
    return Connection(chosen, ca, _check_token(token), client_cert, client_key, kafka)


def read_token_file(path: Path) -> str:
    """A file that holds a token, or the header line `Authorization: Bearer <token>`."""
    try:
        with path.open("rb") as file:
            text = file.read(TOKEN_BYTES_MAX + 1).decode("ascii").strip()
    except OSError as error:
        raise Unusable(f"the token file {path} cannot be read", str(error.strerror)) from None
    except UnicodeDecodeError:
        raise Unusable(f"the token file {path} holds no token") from None
    return text.removeprefix("Authorization: Bearer ")


def _check_token(token: str | None) -> str | None:
    if token is None:
        return None
    token = token.strip()
    if not token or len(token) > TOKEN_BYTES_MAX or not token.isascii() or not token.isprintable() or " " in token:
        raise Unusable(
            "the token is not one word of printable ASCII", what_to_do="check SPRAWL_TOKEN or the file of --token-file"
        )
    return token


def _check_url(url: str, *, with_token: bool) -> None:
    try:
        parts, _ = urlsplit(url), urlsplit(url).port
    except ValueError as error:
        raise Unusable(f"{url!r} is no node's address", str(error), "give https://host:port") from None
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.path or parts.query or parts.username:
        raise Unusable(f"{url!r} is no node's address", what_to_do="give https://host:port")
    if parts.scheme == "http" and with_token and not _is_loopback(parts.hostname):
        raise Unusable(f"{url} is not encrypted: a token sent there could be read on the way", what_to_do="use its https address")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_password() -> str:
    raise ValueError("its key is encrypted; decrypt it into a 0600 file first")
