"""Client certificates: from a verified chain's leaf to a principal.

`ssl` has verified signatures and the chain to the listener's CA before a certificate comes here. What it does not do is read
from it who this is, and insist that the certificate was made for clients: OpenSSL accepts one without any extended key usage
(RFC 5280, 4.2.1.12: any purpose), which would let a server's own certificate call itself a client.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.errors import CertificateRefused, CredentialsInvalid
from security.identity.chain import ClientCertificate, Credential
from security.principal import Principal, PrincipalKind

CERTIFICATE_BYTES_MAX = 64 * 1024
NAMES_MAX = 64  # subject alternative names looked at; a certificate with more is refused, not half read

# What `cryptography` raises for certificates that it cannot read, at once or when a part of one is asked for.
_UNREADABLE = (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_TEMPLATE_PREFIX = re.compile(r"[a-z]+:")


@dataclass(frozen=True, slots=True)
class CertificateRule:
    """Names the certificates of a fleet: where `field` matches `pattern`, the principal is called `name`.

    `pattern` is exact or has one `*`, anywhere. `name` begins with a literal prefix ("device:", "service:", "user:", "cert:")
    and may use `{cn}` and `{match}` (what the `*` stood for). Raises `ValueError`.
    """

    field: Literal["cn", "dns", "uri"]
    pattern: str
    name: str = "cert:{cn}"
    kind: PrincipalKind = PrincipalKind.DEVICE
    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.field not in ("cn", "dns", "uri"):
            raise ValueError(f"a certificate rule looks at cn, dns or uri, not at {self.field!r}")
        if not self.pattern or self.pattern.count("*") > 1:
            raise ValueError(f"the certificate pattern {self.pattern!r} is neither exact nor has it one '*'")
        if unknown := set(_PLACEHOLDER.findall(self.name)) - {"cn", "match"}:
            raise ValueError(f"the name template {self.name!r} uses {{{min(unknown)}}}: only {{cn}} and {{match}} are known")
        prefix = _TEMPLATE_PREFIX.match(self.name)
        if prefix is None or prefix[0] == "token:":
            raise ValueError(f"the name template {self.name!r} has to begin with what it names, like 'device:' or 'service:'")
        if self.kind is PrincipalKind.ANONYMOUS:
            raise ValueError("a certificate proves somebody, who cannot be of the kind anonymous")

    def match(self, text: str) -> str | None:
        """What the `*` stands for in `text` (all of it for an exact pattern); None when it does not match."""
        before, star, after = self.pattern.partition("*")
        if not star:
            return text if text == self.pattern else None
        if len(text) <= len(before) + len(after) or not (text.startswith(before) and text.endswith(after)):
            return None  # the `*` stands for something: an empty name would be everybody's
        return text[len(before) : len(text) - len(after)]


@dataclass(frozen=True, slots=True)
class _Names:
    """What a certificate calls its holder. `cn` is None when there is none."""

    cn: str | None
    dns: tuple[str, ...]
    uri: tuple[str, ...]

    def of(self, field: str) -> tuple[str, ...]:
        if field == "dns":
            return self.dns
        if field == "uri":
            return self.uri
        return () if self.cn is None else (self.cn,)


def principal_of(der: bytes, rules: Sequence[CertificateRule], now_ms: int) -> Principal:
    """The principal of a client certificate: by the first rule that matches, else `cert:<CN>` without roles or groups.

    Raises `CertificateRefused`: damaged, out of its time, a CA, not for clients, or without a usable name.
    """
    certificate = _parse(der)
    expires_at_ms = _check_time(certificate, now_ms)
    _check_purpose(certificate)
    names = _names(certificate)
    name, rule = _named(names, rules)
    try:
        return Principal(
            name=name,
            kind=rule.kind if rule else PrincipalKind.DEVICE,
            proved_by="mtls",
            groups=rule.groups if rule else frozenset(),
            roles=rule.roles if rule else frozenset(),
            claims={"cn": names.cn, "dns": names.dns, "uri": names.uri},
            expires_at_ms=expires_at_ms,
            credential_id=hashlib.sha256(der).hexdigest(),
        )
    except ValueError:
        raise CertificateRefused("its name is too long or has unprintable characters") from None


def _parse(der: bytes) -> x509.Certificate:
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise CertificateRefused(f"it has {len(der)} bytes, at most {CERTIFICATE_BYTES_MAX} are read")
    try:
        return x509.load_der_x509_certificate(der)
    except _UNREADABLE:
        raise CertificateRefused("it is not a DER certificate") from None


def _check_time(certificate: x509.Certificate, now_ms: int) -> int:
    expires_at_ms = _unix_ms(certificate.not_valid_after_utc)
    if now_ms >= expires_at_ms:
        raise CertificateRefused(f"it expired at {certificate.not_valid_after_utc.isoformat()}")
    if now_ms < _unix_ms(certificate.not_valid_before_utc):
        raise CertificateRefused(f"it is not valid before {certificate.not_valid_before_utc.isoformat()}")
    return expires_at_ms


def _unix_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _check_purpose(certificate: x509.Certificate) -> None:
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
            raise CertificateRefused("it was not issued for clients (extended key usage clientAuth)")
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as missing:
        if missing.oid == x509.BasicConstraints.oid:
            return
        raise CertificateRefused("it does not say that it is for clients (extended key usage clientAuth)") from None
    except _UNREADABLE:
        raise CertificateRefused("its extensions cannot be read") from None
    if constraints.ca:
        raise CertificateRefused("it is a certificate authority's own")


def _names(certificate: x509.Certificate) -> _Names:
    try:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = tuple(alternative.get_values_for_type(x509.DNSName))
        uri = tuple(alternative.get_values_for_type(x509.UniformResourceIdentifier))
    except x509.ExtensionNotFound:
        dns = uri = ()
    except _UNREADABLE:
        raise CertificateRefused("its names cannot be read") from None
    if len(common) > 1:
        raise CertificateRefused("it has more than one common name")
    if len(dns) + len(uri) > NAMES_MAX:
        raise CertificateRefused(f"it has more than {NAMES_MAX} names")
    return _Names(str(common[0].value) if common else None, dns, uri)


def _named(names: _Names, rules: Sequence[CertificateRule]) -> tuple[str, CertificateRule | None]:
    for rule in rules:
        for text in names.of(rule.field):
            matched = rule.match(text)
            if matched is not None and (names.cn or "{cn}" not in rule.name):
                return _filled(rule.name, {"cn": names.cn or "", "match": matched}), rule
    if not names.cn:
        raise CertificateRefused("it has no common name and no rule names it by another")
    return f"cert:{names.cn}", None


def _filled(template: str, values: Mapping[str, str]) -> str:
    """In one pass, so that a certificate cannot smuggle in a placeholder of its own."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


class CertificateProvider:
    """Client certificates as an `IdentityProvider`. `clock_ms` is Unix time."""

    def __init__(self, rules: Sequence[CertificateRule], clock_ms: Callable[[], int]) -> None:
        self._rules = tuple(rules)
        self._clock_ms = clock_ms

    @property
    def proves(self) -> str:
        return "mtls"

    @property
    def mechanisms(self) -> tuple[str, ...]:
        return ()  # TLS carries them (SASL EXTERNAL is not offered)

    def recognises(self, credential: Credential) -> bool:
        return isinstance(credential, ClientCertificate)

    async def authenticate(self, credential: Credential) -> Principal:
        if not isinstance(credential, ClientCertificate):
            raise CredentialsInvalid("not_a_certificate")
        return principal_of(credential.der, self._rules, self._clock_ms())

    def still_valid(self, principal: Principal) -> None:
        if principal.expired(self._clock_ms()):
            raise CertificateRefused("it has expired")
