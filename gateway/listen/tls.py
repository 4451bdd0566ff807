"""TLS contexts of a listener: built from files, proved by a handshake, replaced as a whole when the files change.

A context in use is never changed: a failed `load_cert_chain` leaves it unable to serve, and trust roots can be added to it but
not taken away. So a rotation builds a new context, does a handshake with it in memory, and only then uses it instead of the old.

The acceptor asks for `current` at each connection. The other way, one listening context whose `sni_callback` swaps in another,
has two traps that this has not: `verify_mode` stays that of the listening context (mutual TLS silently off), and sessions of the
old one are resumed without a look at the new trust roots.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from cryptography import x509

from security.errors import CertificateProblem, KeyProblem
from security.files import read_private

Mode: TypeAlias = Literal["server", "mutual-optional", "mutual"]
Stamp: TypeAlias = tuple[tuple[int, int, int], ...]

VERIFY = {"server": ssl.CERT_NONE, "mutual-optional": ssl.CERT_OPTIONAL, "mutual": ssl.CERT_REQUIRED}
# TLS 1.3 has its own three, all sound; of TLS 1.2 only forward secrecy with an AEAD (RFC 9325, 4.2).
CIPHERS_TLS12 = "ECDHE+AESGCM:ECDHE+CHACHA20"
ALPN = ["http/1.1"]
KEY_FILE_BYTES_MAX = 64 * 1024

logger = logging.getLogger(__name__)


class CertificateFiles(msgspec.Struct, frozen=True):
    """PEM files. `client_ca` may be None only where no client certificates are asked for."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def stamp(self) -> Stamp:
        """Changes when a file is replaced or written. Raises `OSError`."""
        present = [path for path in (self.certificate, self.key, self.client_ca) if path is not None]
        states = [os.stat(path) for path in present]
        return tuple((state.st_mtime_ns, state.st_size, state.st_ino) for state in states)


class Loaded(msgspec.Struct, frozen=True):
    """A proved context and when its certificate expires, Unix seconds."""

    context: ssl.SSLContext
    expires_at_s: float


def load(files: CertificateFiles, mode: Mode, now: datetime) -> Loaded:
    """Build a context and prove it. Blocks on the disk. Raises `CertificateProblem`, `KeyProblem`."""
    context = _build(files, mode)
    certificate = x509.load_der_x509_certificate(_served_certificate(context, files))
    expires_at = certificate.not_valid_after_utc
    if expires_at <= now:
        raise CertificateProblem(files.certificate, f"it expired at {expires_at.isoformat()}")
    if certificate.not_valid_before_utc > now:
        raise CertificateProblem(files.certificate, f"it is valid only from {certificate.not_valid_before_utc.isoformat()} on")
    return Loaded(context, expires_at.timestamp())


def _build(files: CertificateFiles, mode: Mode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_TLS12)
    context.set_alpn_protocols(ALPN)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    _check_key_file(files.key)
    try:
        # An empty password, not none: OpenSSL would ask for it on the terminal and wait.
        context.load_cert_chain(files.certificate, files.key, password="")
    except ssl.SSLError as error:
        what_to_do = "give a PEM certificate and the unencrypted PEM key it belongs to"
        reason = f"with {files.key.name} it makes no identity ({error.reason})"
        raise CertificateProblem(files.certificate, reason, what_to_do) from None
    except OSError as error:
        missing = files.key if files.certificate.exists() else files.certificate
        raise CertificateProblem(missing, f"it cannot be read ({error.strerror})") from None
    if mode != "server":
        _trust(context, files)
    context.verify_mode = VERIFY[mode]
    return context


def _check_key_file(path: Path) -> None:
    """Raises `KeyFilePermissions` when others may read it. Unreadable ones are told of below."""
    with suppress(FileNotFoundError):
        read_private(path, KEY_FILE_BYTES_MAX)


def _trust(context: ssl.SSLContext, files: CertificateFiles) -> None:
    if files.client_ca is None:
        raise CertificateProblem(files.certificate, "no CA for client certificates is named", "set tls.client_ca")
    try:
        context.load_verify_locations(files.client_ca)
    except ssl.SSLError:
        raise CertificateProblem(files.client_ca, "it holds no PEM certificate") from None
    except OSError as error:
        raise CertificateProblem(files.client_ca, f"it cannot be read ({error.strerror})") from None


def _served_certificate(context: ssl.SSLContext, files: CertificateFiles) -> bytes:
    """What a client gets to see, DER: a handshake in memory, to where the client has verified the server's signature.

    TLS 1.3, in which that is before the server judges the client: so it ends well also where a client certificate is required.
    """
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    probe.minimum_version = ssl.TLSVersion.TLSv1_3
    probe.check_hostname = False
    probe.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = probe.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        client.do_handshake()
        served = client.getpeercert(binary_form=True)
    except ssl.SSLError as error:
        raise CertificateProblem(files.certificate, f"no handshake can be done with it ({error.reason})") from None
    assert served is not None
    return served


class TlsContexts:
    """The context in use, and its replacement when the files change. Raises `CertificateProblem` when the first is not sound.

    `report(outcome, expires_at_s)` is told of each change: `swapped`, or `refused` and the old one stays.
    """

    def __init__(
        self, files: CertificateFiles, mode: Mode, now: Callable[[], datetime], report: Callable[[str, float], None]
    ) -> None:
        self.mode = mode
        self._files = files
        self._now = now
        self._report = report
        self._stamp = self._stamped()
        self._loaded = load(files, mode, now())
        self._refusal: str | None = None
        report("loaded", self._loaded.expires_at_s)

    @property
    def current(self) -> ssl.SSLContext:
        """For the next connection; those that are open keep theirs."""
        return self._loaded.context

    def problem(self) -> str | None:
        """What is wrong with the certificate; None while it is good. A client would refuse one that has expired."""
        if self._loaded.expires_at_s <= self._now().timestamp():
            return (
                f"the server certificate has expired{f', and the new one is refused: {self._refusal}' if self._refusal else ''}"
            )
        return None

    def refresh(self) -> bool:
        """Look at the files, and take what changed; whether anything did. Blocks on the disk."""
        stamp = self._stamped()
        if stamp == self._stamp:
            return False
        self._stamp = stamp  # before reading: a file changed in the middle of it is seen as one more change
        try:
            self._loaded = load(self._files, self.mode, self._now())
        except (CertificateProblem, KeyProblem) as problem:
            self._refusal = str(problem)
            logger.error("the changed certificate is refused, the one before stays in use: %s", problem)
            self._report("refused", self._loaded.expires_at_s)
            return False
        self._refusal = None
        expires_at = datetime.fromtimestamp(self._loaded.expires_at_s, UTC).isoformat()
        logger.info("the certificate was replaced, the new one is valid until %s", expires_at)
        self._report("swapped", self._loaded.expires_at_s)
        return True

    async def watch(self, poll_ms: int) -> None:
        """`refresh` for ever, off the event loop."""
        while True:
            await asyncio.sleep(poll_ms / 1_000)
            await asyncio.to_thread(self.refresh)

    def _stamped(self) -> Stamp:
        """Files that are away for a moment, as between two renames, are a state too: it differs from the one that follows."""
        try:
            return self._files.stamp()
        except OSError:
            return ()
