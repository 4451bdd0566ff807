"""The development CA: TLS from the first second, without asking anybody.

It is made on first use, in one folder, and signs this node's server certificate and client certificates for mTLS:

    ca.pem  ca-key.pem  server.pem  server-key.pem

A node in earnest is given certificates of its organisation's CA; this one says "development" in its name. Its certificates are
short-lived, as it has no way to revoke them. ECDSA P-256 throughout; RFC 5280 profile, as strict verifiers want it.
"""

import ipaddress
import re
import shutil
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.errors import CertificateProblem, KeyFileDamaged
from security.files import PRIVATE_MODE, PUBLIC_MODE, read_private, replace_file, sync_folder

CA_DAYS = 3650
LEAF_DAYS_MAX = 397  # one day below what browsers accept (CA/Browser Forum ballot SC31, 398 days)
RENEW_DAYS = 30
BACKDATE = timedelta(minutes=5)  # clients whose clock is a little behind
HOSTS_MAX = 100
FILE_BYTES_MAX = 64 * 1024
COMMON_NAME_CHARACTERS_MAX = 64  # ub-common-name, RFC 5280 appendix A.1

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")
_HOST_CHARACTERS_MAX = 253

Host = str | ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class CertificatePaths:
    """The four files of the folder, PEM."""

    ca: Path
    ca_key: Path
    server: Path
    server_key: Path


@dataclass(frozen=True, slots=True)
class CertificateDescription:
    """What to show of a certificate."""

    subject: str
    not_after: datetime
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Identity:
    """A certificate and the key it belongs to. The key has no repr of its content."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def ensure_development_ca(folder: Path, hosts: Iterable[str], now: datetime) -> CertificatePaths:
    """Make what is not there, check what is, and renew the server certificate when it must be.

    The server certificate names localhost, 127.0.0.1, ::1, this machine and `hosts`; it is issued again, for the same key, when
    those changed or less than 30 days are left. `now` is aware. Raises CertificateProblem, KeyFilePermissions.
    """
    paths = ca_paths(folder)
    names = _server_names(hosts, paths.server)
    if _is_empty(paths):
        _create(folder, names, now)
    else:
        _renew_server(paths, names, now)
    return paths


def issue_client(paths: CertificatePaths, common_name: str, days: int, now: datetime) -> tuple[bytes, bytes]:
    """A client certificate for mTLS and its key, both PEM; nothing is kept. `days` is 1 to 397. Raises CertificateProblem."""
    if not 1 <= len(common_name) <= COMMON_NAME_CHARACTERS_MAX or not common_name.isprintable():
        reason = f"it issues no certificate for the name {common_name!r}"
        what_to_do = f"choose a name of 1 to {COMMON_NAME_CHARACTERS_MAX} printable characters"
        raise CertificateProblem(paths.ca, reason, what_to_do)
    if not 1 <= days <= LEAF_DAYS_MAX:
        raise CertificateProblem(paths.ca, f"it issues no certificate for {days} days", f"ask for 1 to {LEAF_DAYS_MAX} days")
    ca = _load_ca(paths, now)
    key = _new_key()
    leaf = _leaf(common_name, key.public_key(), ca, now, days, ExtendedKeyUsageOID.CLIENT_AUTH)
    return _certificate_pem(leaf.sign(ca.key, hashes.SHA256())), _key_pem(key)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the DER form, lower-case hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def describe(path: Path) -> CertificateDescription:
    """The first certificate of a PEM file. Raises CertificateProblem."""
    certificate = _load_certificate(path)
    subject = certificate.subject.rfc4514_string()
    return CertificateDescription(subject, certificate.not_valid_after_utc, fingerprint(certificate))


def ca_paths(folder: Path) -> CertificatePaths:
    """Where the files of a development CA are, or would be."""
    return CertificatePaths(folder / "ca.pem", folder / "ca-key.pem", folder / "server.pem", folder / "server-key.pem")


def _is_empty(paths: CertificatePaths) -> bool:
    """Whether none of the files is there. Half of them is a mistake to be looked at, not one to be covered up."""
    expected = (paths.ca, paths.ca_key, paths.server, paths.server_key)
    missing = [path for path in expected if not path.exists()]
    if missing and len(missing) < len(expected):
        present = ", ".join(path.name for path in expected if path not in missing)
        raise CertificateProblem(missing[0], f"it is missing while {present} are there")
    return bool(missing)


def _create(folder: Path, names: x509.SubjectAlternativeName, now: datetime) -> None:
    """All four files or none: they are made in a folder beside, which then takes the place of the empty or absent one."""
    if folder.exists() and any(folder.iterdir()):
        _create_in(folder, names, now)  # somebody else's files lie there: they stay
        return
    making = folder.with_name(f"{folder.name}.new")
    if making.exists():
        shutil.rmtree(making)  # a start that was cut off
    making.mkdir(mode=0o700, parents=True)
    _create_in(making, names, now)
    making.replace(folder)
    sync_folder(folder.parent)


def _create_in(folder: Path, names: x509.SubjectAlternativeName, now: datetime) -> None:
    paths = ca_paths(folder)
    ca = _new_ca(now)
    key = _new_key()
    server = _server_certificate(key.public_key(), ca, names, now)
    replace_file(paths.ca_key, _key_pem(ca.key), PRIVATE_MODE)
    replace_file(paths.server_key, _key_pem(key), PRIVATE_MODE)
    replace_file(paths.ca, _certificate_pem(ca.certificate), PUBLIC_MODE)
    replace_file(paths.server, _certificate_pem(server), PUBLIC_MODE)


def _renew_server(paths: CertificatePaths, names: x509.SubjectAlternativeName, now: datetime) -> None:
    """The key stays, so that one file is replaced and no crash can leave a certificate beside another's key."""
    ca = _load_ca(paths, now)
    server = _load_identity(paths.server, paths.server_key)
    try:
        server.certificate.verify_directly_issued_by(ca.certificate)
    except (ValueError, TypeError, InvalidSignature):
        reason = "it was not issued by the development CA beside it"
        raise CertificateProblem(paths.server, reason, "keep it elsewhere and name it in the configuration") from None
    if _renewal_due(server.certificate, names, now):
        renewed = _server_certificate(server.key.public_key(), ca, names, now)
        replace_file(paths.server, _certificate_pem(renewed), PUBLIC_MODE)


def _renewal_due(certificate: x509.Certificate, names: x509.SubjectAlternativeName, now: datetime) -> bool:
    if certificate.not_valid_after_utc - now < timedelta(days=RENEW_DAYS):
        return True
    try:
        present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return True
    return set(present) != set(names)


def _server_names(hosts: Iterable[str], path: Path) -> x509.SubjectAlternativeName:
    wanted: dict[Host, None] = dict.fromkeys(_host(host, path) for host in ("localhost", "127.0.0.1", "::1", *hosts))
    with suppress(CertificateProblem):  # nobody chose this name for the certificate: one that is no DNS name is left out
        wanted.setdefault(_host(socket.gethostname(), path))
    if len(wanted) > HOSTS_MAX:
        raise CertificateProblem(path, f"it would have {len(wanted)} names", f"configure at most {HOSTS_MAX} hosts")
    return x509.SubjectAlternativeName([x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host) for host in wanted])


def _host(host: str, path: Path) -> Host:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        if len(host) <= _HOST_CHARACTERS_MAX and _HOST.fullmatch(host):
            return host.lower()
    reason = f"{host!r} is neither a host name nor an IP address"
    raise CertificateProblem(path, reason, "configure hosts as DNS names (international ones in their xn-- form) or addresses")


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _new_ca(now: datetime) -> _Identity:
    key = _new_key()
    serial = x509.random_serial_number()
    # A name of its own: two CAs of one name in a trust store confuse those who build chains by name.
    subject = _name(f"Sprawl development CA {serial & 0xFFFFFFFF:08x}")
    usage = _key_usage(digital_signature=False, signs_certificates=True)
    builder = (
        _builder(subject, subject, key.public_key(), now, now + timedelta(days=CA_DAYS))
        .serial_number(serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _Identity(builder.sign(key, hashes.SHA256()), key)


def _server_certificate(
    public_key: ec.EllipticCurvePublicKey, ca: _Identity, names: x509.SubjectAlternativeName, now: datetime
) -> x509.Certificate:
    builder = _leaf("Sprawl node", public_key, ca, now, LEAF_DAYS_MAX, ExtendedKeyUsageOID.SERVER_AUTH)
    return builder.add_extension(names, critical=False).sign(ca.key, hashes.SHA256())


def _leaf(
    common_name: str,
    public_key: ec.EllipticCurvePublicKey,
    ca: _Identity,
    now: datetime,
    days: int,
    purpose: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    """Never valid longer than its CA."""
    not_after = min(now + timedelta(days=days), ca.certificate.not_valid_after_utc)
    return (
        _builder(_name(common_name), ca.certificate.subject, public_key, now, not_after)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True, signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, digital_signature: bool, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_ca(paths: CertificatePaths, now: datetime) -> _Identity:
    ca = _load_identity(paths.ca, paths.ca_key)
    if ca.certificate.not_valid_after_utc <= now:
        raise CertificateProblem(paths.ca, f"it expired at {ca.certificate.not_valid_after_utc.isoformat()}")
    return ca


def _load_identity(path: Path, key_path: Path) -> _Identity:
    certificate, key = _load_certificate(path), _load_key(key_path)
    if certificate.public_key() != key.public_key():
        raise CertificateProblem(path, f"it does not belong to the key in {key_path.name}")
    return _Identity(certificate, key)


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        with path.open("rb") as file:
            return x509.load_pem_x509_certificate(file.read(FILE_BYTES_MAX))
    except FileNotFoundError:
        raise CertificateProblem(path, "it is missing") from None
    except OSError as error:
        raise CertificateProblem(path, f"it cannot be read ({error.strerror})") from None
    except ValueError:
        raise CertificateProblem(path, "it holds no PEM certificate") from None


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_private(path, FILE_BYTES_MAX), password=None)
    except FileNotFoundError:
        raise CertificateProblem(path, "it is missing") from None
    except KeyFileDamaged as problem:
        raise CertificateProblem(path, problem.reason) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it asks for a password
        raise CertificateProblem(path, "it holds no unencrypted PEM key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateProblem(path, "it holds no ECDSA key")
    return key


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
