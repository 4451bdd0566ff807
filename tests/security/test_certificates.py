import asyncio
import ipaddress
import os
import socket
import ssl
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from security import certificates
from security.certificates import HOSTS_MAX, describe, ensure_development_ca, fingerprint, issue_client
from security.errors import CertificateProblem, KeyFilePermissions

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
NAMES = ("ca.pem", "ca-key.pem", "server.pem", "server-key.pem")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "certificates"


@pytest.fixture
def paths(folder):
    return ensure_development_ca(folder, [], NOW)


def load(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def content(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def host_names(path):
    names = extension(load(path), x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


class TestFirstUse:
    def test_makes_four_files_with_their_modes(self, folder):
        before = os.umask(0)
        try:
            paths = ensure_development_ca(folder, [], NOW)
        finally:
            os.umask(before)
        modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in os.listdir(folder)}
        assert modes == {"ca.pem": 0o644, "ca-key.pem": 0o600, "server.pem": 0o644, "server-key.pem": 0o600}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [path.name for path in (paths.ca, paths.ca_key, paths.server, paths.server_key)] == list(NAMES)

    def test_makes_a_ca_that_signs_and_nothing_else(self, paths):
        ca = load(paths.ca)
        basic, usage = extension(ca, x509.BasicConstraints), extension(ca, x509.KeyUsage)
        assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
        assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign) == (True, True, True)
        assert not usage.value.digital_signature
        assert ca.not_valid_after_utc == NOW + 3650 * DAY
        assert ca.public_key().curve.name == "secp256r1"
        assert "development" in ca.subject.rfc4514_string()

    def test_makes_a_server_certificate_that_a_strict_verifier_takes(self, paths):
        server = load(paths.server)
        policy = PolicyBuilder().store(Store([load(paths.ca)]))
        for name in (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("::1"))):
            assert policy.time(NOW).build_server_verifier(name).verify(server, [])
        with pytest.raises(VerificationError):
            policy.time(NOW).build_server_verifier(x509.DNSName("example.org")).verify(server, [])
        with pytest.raises(VerificationError):
            policy.time(NOW + 398 * DAY).build_server_verifier(x509.DNSName("localhost")).verify(server, [])
        assert server.not_valid_after_utc == NOW + 397 * DAY
        assert list(extension(server, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
        assert not extension(server, x509.BasicConstraints).value.ca

    def test_names_this_machine_and_the_hosts_given(self, folder, monkeypatch):
        monkeypatch.setattr(socket, "gethostname", lambda: "Edge-7")
        paths = ensure_development_ca(folder, ["Streams.example.org", "*.example.org", "10.0.0.7", "::1"], NOW)
        assert host_names(paths.server) == {
            *("localhost", "127.0.0.1", "::1", "edge-7"),
            *("streams.example.org", "*.example.org", "10.0.0.7"),
        }

    def test_leaves_out_a_machine_name_that_is_no_dns_name(self, folder, monkeypatch):
        monkeypatch.setattr(socket, "gethostname", lambda: "mein rechner")
        paths = ensure_development_ca(folder, [], NOW)
        assert host_names(paths.server) == {"localhost", "127.0.0.1", "::1"}

    @pytest.mark.parametrize(
        "host", ["", " ", "a b", "-a", "a..b", ".", "münchen.example", "a" * 64, "a." * 127 + "a", "*", "a\0"]
    )
    def test_refuses_a_host_that_is_no_name(self, folder, host):
        with pytest.raises(CertificateProblem, match="neither a host name nor an IP address"):
            ensure_development_ca(folder, [host], NOW)
        assert not folder.exists()

    def test_has_a_bound_for_hosts(self, folder, monkeypatch):
        monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
        hosts = [f"host-{number}.example.org" for number in range(HOSTS_MAX - 3)]
        with pytest.raises(CertificateProblem, match=f"at most {HOSTS_MAX} hosts"):
            ensure_development_ca(folder, [*hosts, "one-more.example.org"], NOW)
        assert len(host_names(ensure_development_ca(folder, hosts, NOW).server)) == HOSTS_MAX

    def test_gives_every_ca_a_name_of_its_own(self, tmp_path):
        subjects = {load(ensure_development_ca(tmp_path / name, [], NOW).ca).subject for name in "ab"}
        assert len(subjects) == 2

    def test_leaves_no_key_when_the_disk_is_full(self, folder, monkeypatch):
        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            ensure_development_ca(folder, [], NOW)
        assert not folder.exists()
        assert os.listdir(folder.with_name(f"{folder.name}.new")) == []


class TestSecondUse:
    def test_changes_nothing(self, folder, paths):
        before = content(folder)
        assert ensure_development_ca(folder, [], NOW + 367 * DAY) == paths
        assert content(folder) == before

    def test_renews_the_server_certificate_before_it_expires(self, folder, paths):
        before, later = content(folder), NOW + 367 * DAY + timedelta(seconds=1)
        ensure_development_ca(folder, [], later)
        after = content(folder)
        assert [name for name in before if before[name] != after[name]] == ["server.pem"]
        assert load(paths.server).not_valid_after_utc == later + 397 * DAY
        assert stat.S_IMODE(paths.server.stat().st_mode) & 0o133 == 0

    def test_issues_it_again_when_the_hosts_change(self, folder, paths):
        before = content(folder)
        ensure_development_ca(folder, ["streams.example.org"], NOW + DAY)
        assert "streams.example.org" in host_names(paths.server)
        with_host = content(folder)
        assert [name for name in before if before[name] != with_host[name]] == ["server.pem"]
        ensure_development_ca(folder, ["streams.example.org"], NOW + 2 * DAY)
        assert content(folder) == with_host
        ensure_development_ca(folder, [], NOW + 3 * DAY)
        assert "streams.example.org" not in host_names(paths.server)

    def test_never_issues_beyond_the_ca(self, folder, paths):
        later = NOW + 3600 * DAY
        ensure_development_ca(folder, [], later)
        assert load(paths.server).not_valid_after_utc == load(paths.ca).not_valid_after_utc
        with pytest.raises(CertificateProblem, match=r"ca\.pem cannot be used, it expired at 2036-02-27"):
            ensure_development_ca(folder, [], NOW + 3650 * DAY)

    @pytest.mark.parametrize("missing", NAMES)
    def test_names_the_file_that_is_missing(self, folder, paths, missing):
        (folder / missing).unlink()
        before = content(folder)
        with pytest.raises(CertificateProblem, match=f"{missing} cannot be used, it is missing while .* move the folder away"):
            ensure_development_ca(folder, [], NOW)
        assert content(folder) == before

    @pytest.mark.parametrize("damaged", NAMES)
    def test_names_the_file_that_is_half_written(self, folder, paths, damaged):
        whole = (folder / damaged).read_bytes()
        descriptor = os.open(folder / damaged, os.O_WRONLY | os.O_TRUNC)
        os.close(descriptor)
        for size in (0, 1, len(whole) // 2, len(whole) - 2):
            (folder / damaged).write_bytes(whole[:size])
            with pytest.raises(CertificateProblem, match=f"{damaged} cannot be used, it holds no"):
                ensure_development_ca(folder, [], NOW)

    @pytest.mark.parametrize("name", ["ca-key.pem", "server-key.pem"])
    def test_refuses_a_key_that_others_may_read(self, folder, paths, name):
        (folder / name).chmod(0o640)
        with pytest.raises(KeyFilePermissions, match=f"{name} has mode 0640"):
            ensure_development_ca(folder, [], NOW)

    @pytest.mark.parametrize("name", ["ca", "server"])
    def test_refuses_a_certificate_of_another_key(self, folder, paths, tmp_path, name):
        other = ensure_development_ca(tmp_path / "other", [], NOW)
        (folder / f"{name}.pem").write_bytes(getattr(other, name).read_bytes())
        with pytest.raises(CertificateProblem, match=f"{name}.pem cannot be used, it does not belong to the key in {name}-key"):
            ensure_development_ca(folder, [], NOW)

    def test_does_not_overwrite_a_server_certificate_of_another_ca(self, folder, paths, tmp_path):
        other = ensure_development_ca(tmp_path / "other", [], NOW)
        for name in ("server.pem", "server-key.pem"):
            (folder / name).write_bytes((other.ca.parent / name).read_bytes())
        before = content(folder)
        with pytest.raises(CertificateProblem, match=r"server\.pem cannot be used, it was not issued by .* keep it elsewhere"):
            ensure_development_ca(folder, ["changed.example.org"], NOW)
        assert content(folder) == before

    def test_renews_a_server_certificate_without_names(self, folder, paths):
        ca_key = serialization.load_pem_private_key(paths.ca_key.read_bytes(), None)
        server, ca = load(paths.server), load(paths.ca)
        nameless = (
            x509.CertificateBuilder()
            .subject_name(server.subject)
            .issuer_name(ca.subject)
            .public_key(server.public_key())
            .serial_number(1)
            .not_valid_before(NOW)
            .not_valid_after(NOW + 100 * DAY)
            .sign(ca_key, hashes.SHA256())
        )
        paths.server.write_bytes(nameless.public_bytes(serialization.Encoding.PEM))
        ensure_development_ca(folder, [], NOW)
        assert "localhost" in host_names(paths.server)

    @pytest.mark.parametrize("encryption", [serialization.NoEncryption(), serialization.BestAvailableEncryption(b"word")])
    def test_refuses_keys_it_did_not_make(self, folder, paths, encryption):
        pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
        paths.ca_key.write_bytes(pem)
        with pytest.raises(CertificateProblem, match=r"ca-key\.pem cannot be used, it holds no"):
            ensure_development_ca(folder, [], NOW)


class TestClientCertificates:
    def test_are_for_clients_only(self, paths):
        pem, key_pem = issue_client(paths, "meter-7", 90, NOW)
        certificate = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(key_pem, None)
        assert certificate.public_key() == key.public_key()
        assert [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["meter-7"]
        assert list(extension(certificate, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert not extension(certificate, x509.BasicConstraints).value.ca
        assert certificate.not_valid_after_utc == NOW + 90 * DAY
        certificate.verify_directly_issued_by(load(paths.ca))

    def test_leave_the_folder_alone(self, folder, paths):
        before = content(folder)
        issue_client(paths, "meter-7", 90, NOW)
        assert content(folder) == before

    @pytest.mark.parametrize("name", ["", "m" * 65, "a\nb", "a\0b"])
    def test_have_names_of_printable_characters(self, paths, name):
        with pytest.raises(CertificateProblem, match="choose a name of 1 to 64 printable characters"):
            issue_client(paths, name, 90, NOW)

    @pytest.mark.parametrize("days", [-1, 0, 398, 10**9])
    def test_are_short_lived(self, paths, days):
        assert issue_client(paths, "m" * 64, 397, NOW)
        with pytest.raises(CertificateProblem, match=f"for {days} days: ask for 1 to 397 days"):
            issue_client(paths, "meter-7", days, NOW)

    def test_need_the_ca(self, paths):
        paths.ca_key.unlink()
        with pytest.raises(CertificateProblem, match=r"ca-key\.pem cannot be used, it is missing"):
            issue_client(paths, "meter-7", 90, NOW)


class TestHandshake:
    """Real sockets, real time: what Python's ssl says to our certificates."""

    @pytest.fixture
    def live(self, folder):
        return ensure_development_ca(folder, [], datetime.now(UTC))

    @pytest.fixture
    async def port(self, live):
        async def answer(reader, writer):
            peer = writer.get_extra_info("peercert")
            writer.write(dict(field[0] for field in peer["subject"])["commonName"].encode())
            await writer.drain()
            writer.close()

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=live.ca)
        context.load_cert_chain(live.server, live.server_key)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
            yield server.sockets[0].getsockname()[1]

    @staticmethod
    def client(ca, tmp_path, certificate=None):
        context = ssl.create_default_context(cafile=ca)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if certificate:
            (tmp_path / "client.pem").write_bytes(b"".join(certificate))
            context.load_cert_chain(tmp_path / "client.pem")
        return context

    async def test_proves_both_sides(self, live, port, tmp_path):
        certificate = issue_client(live, "meter-7", 1, datetime.now(UTC))
        for host in ("localhost", "127.0.0.1"):
            context = self.client(live.ca, tmp_path, certificate)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
            assert await reader.read() == b"meter-7"
            writer.close()
            await writer.wait_closed()

    async def test_fails_for_another_name(self, live, port, tmp_path):
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await asyncio.open_connection("127.0.0.1", port, ssl=self.client(live.ca, tmp_path), server_hostname="example.org")

    async def test_fails_for_a_client_of_another_ca(self, port, live, tmp_path):
        other = ensure_development_ca(tmp_path / "other", [], datetime.now(UTC))
        certificate = issue_client(other, "meter-7", 1, datetime.now(UTC))
        context = self.client(live.ca, tmp_path, certificate)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        answer = b""
        with suppress(OSError):  # TLS 1.3: the refusal arrives after our handshake, as an alert or as a closed connection
            answer = await reader.read()
        assert answer == b""
        writer.close()


def test_describes_a_certificate(paths):
    seen = describe(paths.server)
    assert seen.subject == "CN=Sprawl node"
    assert seen.not_after == NOW + 397 * DAY
    assert seen.fingerprint == fingerprint(load(paths.server))
    assert len(bytes.fromhex(seen.fingerprint)) == 32


@pytest.mark.parametrize("what", ["missing", "folder", "no certificate"])
def test_describes_only_certificates(tmp_path, what):
    path = tmp_path / "file.pem"
    if what == "folder":
        path.mkdir()
    elif what == "no certificate":
        path.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(CertificateProblem, match=r"file\.pem cannot be used"):
        describe(path)


class CutOffError(Exception):
    """The process ends here."""


@pytest.mark.parametrize("files_made", [1, 2, 3])
def test_a_first_start_that_is_cut_off_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_made: int
) -> None:
    made = 0
    really = certificates.replace_file

    def until_cut(path: Path, data: bytes, mode: int) -> None:
        nonlocal made
        if made == files_made:
            raise CutOffError
        made += 1
        really(path, data, mode)

    folder = tmp_path / "certs"
    with monkeypatch.context() as cut:
        cut.setattr(certificates, "replace_file", until_cut)
        with pytest.raises(CutOffError):
            certificates.ensure_development_ca(folder, [], NOW)
    assert not folder.exists()
    paths = certificates.ensure_development_ca(folder, [], NOW)
    assert sorted(path.name for path in folder.iterdir()) == ["ca-key.pem", "ca.pem", "server-key.pem", "server.pem"]
    assert paths.server.parent == folder
    assert not folder.with_name("certs.new").exists()
