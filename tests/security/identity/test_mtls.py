"""Client certificates: who a verified certificate is, and which ones prove nothing."""

import asyncio
import ssl
import warnings
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.certificates import ensure_development_ca, issue_client
from security.errors import CertificateRefused, CredentialsInvalid
from security.identity.chain import BearerToken, ClientCertificate, NoCredential
from security.identity.mtls import CERTIFICATE_BYTES_MAX, NAMES_MAX, CertificateProvider, CertificateRule, principal_of
from security.principal import NAME_CHARS_MAX, PrincipalKind

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
DAY = timedelta(days=1)
KEY = ec.generate_private_key(ec.SECP256R1())
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)


def certificate(*names, dns=(), uri=(), purposes=CLIENT, before=NOW - DAY, after=NOW + DAY, ca=False, extra=()):
    """DER of a self-signed certificate: `ssl` would have checked the chain, this package reads the leaf."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd names are made on purpose
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False) for name in names])
    builder = x509.CertificateBuilder(subject, subject, KEY.public_key(), 7, before, after)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    if dns or uri:
        names = [*map(x509.DNSName, dns), *map(x509.UniformResourceIdentifier, uri)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension in extra:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


class TestPrincipal:
    def test_without_a_rule_it_is_called_by_its_common_name_and_has_no_rights(self):
        der = certificate("device-7", dns=["d7.example"])
        principal = principal_of(der, [], NOW_MS)
        assert principal.name == "cert:device-7"
        assert principal.kind is PrincipalKind.DEVICE
        assert principal.proved_by == "mtls"
        assert principal.roles == principal.groups == frozenset()
        assert principal.scopes is None
        assert principal.expires_at_ms == NOW_MS + 86_400_000
        assert principal.claims == {"cn": "device-7", "dns": ("d7.example",), "uri": ()}
        assert principal.credential_id == x509.load_der_x509_certificate(der).fingerprint(hashes.SHA256()).hex()

    def test_the_first_rule_that_matches_names_it(self):
        rules = [
            CertificateRule("cn", "gone-*", "device:gone"),
            CertificateRule(
                "uri",
                "spiffe://shop/*/worker",
                "service:{match}",
                PrincipalKind.SERVICE,
                frozenset({"publisher"}),
                frozenset({"shop"}),
            ),
            CertificateRule("cn", "*", "device:{cn}"),
        ]
        principal = principal_of(certificate("w", uri=["spiffe://shop/eu/worker"]), rules, NOW_MS)
        assert (principal.name, principal.kind) == ("service:eu", PrincipalKind.SERVICE)
        assert (principal.roles, principal.groups) == ({"publisher"}, {"shop"})
        assert principal_of(certificate("w"), rules, NOW_MS).name == "device:w"

    def test_any_of_its_alternative_names_may_match(self):
        rule = CertificateRule("dns", "*.devices.example", "device:{match}")
        assert principal_of(certificate(dns=["other.example", "d7.devices.example"]), [rule], NOW_MS).name == "device:d7"

    def test_a_rule_that_needs_a_common_name_passes_over_those_without(self):
        rules = [CertificateRule("dns", "*.example", "device:{cn}"), CertificateRule("dns", "*.example", "device:{match}")]
        assert principal_of(certificate(dns=["d7.example"]), rules, NOW_MS).name == "device:d7"

    def test_a_certificate_cannot_bring_a_placeholder_of_its_own(self):
        rule = CertificateRule("cn", "x*", "device:{match}")
        assert principal_of(certificate("x{cn}"), [rule], NOW_MS).name == "device:{cn}"


class TestRefused:
    @pytest.mark.filterwarnings("ignore:Attribute's length")  # said by `cryptography` of the very names that are refused
    @pytest.mark.parametrize(
        ("der", "said"),
        [
            (certificate("d", after=NOW), "expired at 2026-03-01"),
            (certificate("d", before=NOW + timedelta(seconds=1)), "not valid before"),
            (certificate("d", purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)), "not issued for clients"),
            (certificate("d", purposes=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)), "not issued for clients"),
            (certificate("d", purposes=()), "does not say that it is for clients"),
            (certificate("d", ca=True), "authority"),
            (certificate(), "no common name"),
            (certificate(""), "no common name"),
            (certificate(dns=["d.example"]), "no rule names it"),
            (certificate("admin", "d"), "more than one common name"),
            (certificate("d\nroot"), "unprintable"),
            (certificate("root\x00.example"), "unprintable"),
            (certificate("d" * NAME_CHARS_MAX), "too long"),
            (certificate("d", dns=[f"d{n}.example" for n in range(NAMES_MAX + 1)]), f"more than {NAMES_MAX} names"),
            (
                certificate("d", extra=[x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\x30\x05")]),
                "cannot be read",
            ),
            (b"", "not a DER certificate"),
            (b"-----BEGIN CERTIFICATE-----", "not a DER certificate"),
            (bytes(CERTIFICATE_BYTES_MAX + 1), "at most"),
        ],
    )
    def test_it_proves_nothing_and_the_reason_is_said(self, der, said):
        with pytest.raises(CertificateRefused) as refused:
            principal_of(der, [], NOW_MS)
        assert said in str(refused.value)

    def test_for_clients_among_others_and_without_constraints_is_enough(self):
        both = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
        assert principal_of(certificate("d", purposes=both, ca=None), [], NOW_MS).name == "cert:d"
        assert principal_of(certificate("d", dns=[f"d{n}.example" for n in range(NAMES_MAX)]), [], NOW_MS)

    def test_every_truncation_is_refused(self):
        der = certificate("d", dns=["d.example"])
        for end in range(len(der)):
            with pytest.raises(CertificateRefused):
                principal_of(der[:end], [], NOW_MS)

    @pytest.mark.filterwarnings("ignore")  # `cryptography` warns of odd serial numbers and the like
    def test_no_flipped_bit_breaks_it(self):
        der = certificate("d", dns=["d.example"], uri=["spiffe://shop/d"])
        for position in range(8 * len(der)):
            spoiled = bytearray(der)
            spoiled[position // 8] ^= 1 << position % 8
            with suppress(CertificateRefused):
                assert principal_of(bytes(spoiled), [], NOW_MS).proved_by == "mtls"


class TestRule:
    @pytest.mark.parametrize(
        ("pattern", "text", "match"),
        [
            ("device-7", "device-7", "device-7"),
            ("device-7", "device-77", None),
            ("device-*", "device-7", "7"),
            ("device-*", "device-", None),
            ("*.example", "d7.example", "d7"),
            ("a*a", "aba", "b"),
            ("a*a", "aa", None),
            ("a*a", "a", None),
            ("*", "x", "x"),
        ],
    )
    def test_patterns(self, pattern, text, match):
        assert CertificateRule("cn", pattern).match(text) == match

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"field": "email"}, "cn, dns or uri"),
            ({"pattern": ""}, "neither exact"),
            ({"pattern": "*-*"}, "neither exact"),
            ({"name": "{cn}"}, "begin with what it names"),
            ({"name": "token:{cn}"}, "begin with what it names"),
            ({"name": "device:{dns}"}, "{dns}"),
            ({"name": "device:{}"}, "{}"),
            ({"kind": PrincipalKind.ANONYMOUS}, "anonymous"),
        ],
    )
    def test_a_rule_that_would_surprise_is_refused_where_it_is_written(self, wrong, said):
        with pytest.raises(ValueError, match=said):
            CertificateRule(**{"field": "cn", "pattern": "*", **wrong})


class TestProvider:
    async def test_it_knows_certificates_and_judges_live_connections(self):
        now_ms = [NOW_MS]
        provider = CertificateProvider([], lambda: now_ms[0])
        credential = ClientCertificate(certificate("d"))
        assert provider.recognises(credential)
        assert not provider.recognises(NoCredential())
        assert not provider.recognises(BearerToken("x"))
        principal = await provider.authenticate(credential)
        assert principal.proved_by == provider.proves
        provider.still_valid(principal)
        now_ms[0] += 86_400_000
        with pytest.raises(CertificateRefused):
            provider.still_valid(principal)
        with pytest.raises(CredentialsInvalid):
            await provider.authenticate(BearerToken("x"))


async def test_the_certificate_of_a_real_handshake(tmp_path):
    now = datetime.now(UTC)
    paths = ensure_development_ca(tmp_path / "certificates", [], now)
    certificate_pem, key_pem = issue_client(paths, "device-7", 1, now)
    (tmp_path / "client.pem").write_bytes(certificate_pem + key_pem)
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=paths.ca)
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_cert_chain(paths.server, paths.server_key)
    client_context = ssl.create_default_context(cafile=paths.ca)
    client_context.load_cert_chain(tmp_path / "client.pem")
    shown = asyncio.get_running_loop().create_future()

    async def serve(_, writer):
        shown.set_result(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context) as server:
        host, port = server.sockets[0].getsockname()
        _, writer = await asyncio.open_connection(host, port, ssl=client_context)
        der = await asyncio.wait_for(shown, 5)
        writer.close()
        await writer.wait_closed()
    provider = CertificateProvider([], lambda: int(now.timestamp() * 1000))
    assert (await provider.authenticate(ClientCertificate(der))).name == "cert:device-7"
