"""Contexts from files: what is refused, and what a rotation does to those who connect before and after."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.listen.tls import CertificateFiles, TlsContexts, load
from gateway.settings import Listener
from security.certificates import CertificatePaths, ensure_development_ca, issue_client
from security.errors import CertificateProblem, KeyFilePermissions
from tests.gateway.listen.served import client_context, now, serving, tls_contexts, until

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@pytest.fixture
def mine(files: CertificateFiles, tmp_path: Path) -> CertificateFiles:
    """Copies that a test may spoil."""
    assert files.client_ca is not None
    own = [Path(shutil.copy2(path, tmp_path / path.name)) for path in (files.certificate, files.key, files.client_ca)]
    return CertificateFiles(*own)


def another(folder: Path) -> CertificateFiles:
    """Of another CA."""
    paths = ensure_development_ca(folder, [], now())
    return CertificateFiles(paths.server, paths.server_key, paths.ca)


def put(source: Path, target: Path) -> None:
    """As a rotation does: written beside it and renamed."""
    beside = target.with_suffix(".new")
    shutil.copy2(source, beside)
    os.replace(beside, target)


def encrypt(path: Path) -> None:
    key = load_pem_private_key(path.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))


class TestLoading:
    @pytest.mark.parametrize("mode", ["server", "mutual-optional", "mutual"])
    def test_a_sound_certificate_is_proved_by_a_handshake(self, mode: Any, files: CertificateFiles) -> None:
        loaded = load(files, mode, now())
        assert loaded.expires_at_s > now().timestamp()
        assert loaded.context.minimum_version is ssl.TLSVersion.TLSv1_2

    def test_another_certificates_key_is_refused(self, mine: CertificateFiles, tmp_path: Path) -> None:
        put(another(tmp_path / "other").key, mine.key)
        with pytest.raises(CertificateProblem, match=r"server\.pem cannot be used, with server-key\.pem it makes no identity"):
            load(mine, "server", now())

    def test_an_encrypted_key_is_refused_without_asking_for_its_password(self, mine: CertificateFiles) -> None:
        encrypt(mine.key)
        with pytest.raises(CertificateProblem, match="unencrypted"):
            load(mine, "server", now())

    def test_a_key_that_others_may_read_is_refused(self, mine: CertificateFiles) -> None:
        mine.key.chmod(0o644)
        with pytest.raises(KeyFilePermissions, match=r"server-key\.pem has mode 0644"):
            load(mine, "server", now())

    @pytest.mark.parametrize("name", ["certificate", "key", "client_ca"])
    def test_a_missing_file_is_named(self, name: str, mine: CertificateFiles) -> None:
        path: Path = getattr(mine, name)
        path.unlink()
        with pytest.raises(CertificateProblem, match=f"{path.name} cannot be used"):
            load(mine, "mutual", now())

    @pytest.mark.parametrize("name", ["certificate", "key", "client_ca"])
    def test_a_file_of_something_else_is_refused(self, name: str, mine: CertificateFiles) -> None:
        path: Path = getattr(mine, name)
        path.write_text("no PEM at all")
        with pytest.raises(CertificateProblem, match="cannot be used"):
            load(mine, "mutual", now())

    def test_mutual_without_a_ca_is_refused(self, files: CertificateFiles) -> None:
        with pytest.raises(CertificateProblem, match=r"set tls\.client_ca"):
            load(CertificateFiles(files.certificate, files.key), "mutual", now())

    @pytest.mark.parametrize(("days", "reason"), [(5_000, "it expired at"), (-5_000, "valid only from")])
    def test_a_certificate_of_another_time_is_refused(self, days: int, reason: str, files: CertificateFiles) -> None:
        with pytest.raises(CertificateProblem, match=reason):
            load(files, "server", now() + timedelta(days=days))


class TestWhatClientsGet:
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    async def test_tls_1_2_and_1_3_with_forward_secrecy_and_http_1_1(
        self, version: ssl.TLSVersion, files: CertificateFiles, authority: CertificatePaths
    ) -> None:
        context = client_context(authority)
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        async with serving(application, listener=Listener(port=0), contexts=tls_contexts(files), context=context) as served:
            client = await served.connect()
            connection = client.writer.get_extra_info("ssl_object")
            assert connection.selected_alpn_protocol() == "http/1.1"
            name = connection.cipher()[0]
            assert name.startswith(("ECDHE-", "TLS_AES_", "TLS_CHACHA20_"))
            assert (await client.ask(GET)).status == 200

    @pytest.mark.parametrize("ciphers", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256"])
    async def test_nothing_weaker(self, ciphers: str, files: CertificateFiles, authority: CertificatePaths) -> None:
        context = client_context(authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        async with serving(application, listener=Listener(port=0), contexts=tls_contexts(files), context=context) as served:
            with pytest.raises(OSError):  # noqa: PT011  # the alert, or the reset behind it: whichever is first
                await served.connect()
            await until(lambda: served.refused("handshake-failed") == 1)


class Clock:
    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return now() + self.ahead


class TestRotation:
    def contexts(self, files: CertificateFiles, mode: Any = "server") -> TlsContexts:
        self.reports: list[str] = []
        self.clock = Clock()
        return TlsContexts(files, mode, self.clock, lambda outcome, expires_at_s: self.reports.append(outcome))

    def test_nothing_happens_while_the_files_stay(self, mine: CertificateFiles) -> None:
        contexts = self.contexts(mine)
        before = contexts.current
        assert contexts.refresh() is False
        assert contexts.current is before
        assert self.reports == ["loaded"]

    def test_a_broken_certificate_leaves_the_old_one_in_use(
        self, mine: CertificateFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        contexts = self.contexts(mine)
        before = contexts.current
        put(another(tmp_path / "other").certificate, mine.certificate)
        assert contexts.refresh() is False
        assert contexts.current is before
        assert self.reports == ["loaded", "refused"]
        assert "the changed certificate is refused" in caplog.text
        assert contexts.refresh() is False  # told once, not at each look
        assert self.reports == ["loaded", "refused"]

    def test_it_is_taken_once_its_key_has_followed(self, mine: CertificateFiles, tmp_path: Path) -> None:
        contexts = self.contexts(mine)
        fresh = another(tmp_path / "other")
        put(fresh.certificate, mine.certificate)
        contexts.refresh()
        put(fresh.key, mine.key)
        assert contexts.refresh() is True
        assert self.reports == ["loaded", "refused", "swapped"]

    def test_a_file_that_is_away_for_a_moment_is_not_forgotten(self, mine: CertificateFiles, tmp_path: Path) -> None:
        contexts = self.contexts(mine)
        away = mine.key.rename(tmp_path / "away")
        assert contexts.refresh() is False
        away.rename(mine.key)
        assert contexts.refresh() is True
        assert self.reports == ["loaded", "refused", "swapped"]

    def test_an_expired_certificate_is_a_problem_of_the_node(self, mine: CertificateFiles) -> None:
        contexts = self.contexts(mine)
        assert contexts.problem() is None
        self.clock.ahead = timedelta(days=5_000)
        assert contexts.problem() == "the server certificate has expired"

    async def test_the_next_connection_sees_the_new_one_and_open_ones_live_on(
        self, mine: CertificateFiles, authority: CertificatePaths, tmp_path: Path
    ) -> None:
        contexts = self.contexts(mine)
        fresh_paths = ensure_development_ca(tmp_path / "other", [], now())
        old, new = client_context(authority), client_context(fresh_paths)
        async with serving(application, listener=Listener(port=0), contexts=contexts) as served:
            before = await served.connect(old)
            watching = asyncio.create_task(contexts.watch(10))
            put(fresh_paths.server_key, mine.key)
            put(fresh_paths.server, mine.certificate)
            await until(lambda: "swapped" in self.reports)
            after = await served.connect(new)
            assert [(await client.ask(GET)).status for client in (before, after)] == [200, 200]
            with pytest.raises(ssl.SSLCertVerificationError):
                await served.connect(old)
            watching.cancel()

    async def test_clients_of_a_ca_that_was_taken_away_stay_out_also_with_a_session_to_resume(
        self, mine: CertificateFiles, authority: CertificatePaths, tmp_path: Path
    ) -> None:
        contexts = self.contexts(mine, "mutual")
        fresh = ensure_development_ca(tmp_path / "other", [], now())
        async with serving(application, listener=Listener(port=0, tls="mutual"), contexts=contexts) as served:
            assert served.server.address is not None
            device = blocking_context(authority, tmp_path)
            session, answered = await asyncio.to_thread(visit, served.server.address, device, None)
            assert answered
            assert session is not None
            assert mine.client_ca is not None
            put(fresh.ca, mine.client_ca)
            assert contexts.refresh() is True
            _, answered = await asyncio.to_thread(visit, served.server.address, device, session)
            assert not answered
            assert served.refused("handshake-failed") == 1


def blocking_context(authority: CertificatePaths, folder: Path) -> ssl.SSLContext:
    certificate, key = issue_client(authority, "device-7", 1, now())
    (folder / "device.pem").write_bytes(certificate + key)
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.load_cert_chain(folder / "device.pem")
    return context


def visit(address: tuple[str, int], context: ssl.SSLContext, session: Any) -> tuple[Any, bool]:
    """asyncio cannot hand over a session to resume; returns the one to resume next time, and whether there was an answer."""
    import socket

    with (
        socket.create_connection(address, timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as connection,
    ):
        try:
            connection.sendall(GET)
            answer = connection.recv(1_000)
        except OSError:
            answer = b""
        return connection.session, answer.startswith(b"HTTP/1.1 200")
