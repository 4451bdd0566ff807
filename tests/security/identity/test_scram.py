"""SCRAM, the server's side: the RFC's own example, foreign clients' words, and everything that is none."""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.errors import CredentialsInvalid
from security.identity.scram import (
    HASHES,
    ITERATIONS_MIN,
    MESSAGE_BYTES_MAX,
    NAME_CHARS_MAX,
    ScramExchange,
    ScramSecret,
    fresh_nonce,
    secret_of,
    secret_of_salted,
    version_of,
)

DECOY = bytes(32)
MECHANISMS = sorted(HASHES)


def exchange(mechanism="SCRAM-SHA-256", password="pencil-case", name="alice", nonce="ours", salt=b"salt", decoy_key=DECOY):
    secret = secret_of(mechanism, password, salt, ITERATIONS_MIN)
    return ScramExchange(mechanism, lambda asked, who: secret if (asked, who) == (mechanism, name) else None, nonce, decoy_key)


class Client:
    """A client written from RFC 5802, section 3, and nothing of ours."""

    def __init__(self, mechanism, name, password, gs2="n,,"):
        self.digest = HASHES[mechanism]().name
        self.gs2, self.password = gs2, password
        self.bare = f"n={name},r=theirs"

    def first(self):
        return (self.gs2 + self.bare).encode()

    def final(self, server_first):
        fields = dict(part.split("=", 1) for part in server_first.decode().split(","))
        salted = hashlib.pbkdf2_hmac(self.digest, self.password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
        client_key = hmac.digest(salted, b"Client Key", self.digest)
        without_proof = f"c={base64.b64encode(self.gs2.encode()).decode()},r={fields['r']}"
        signed = f"{self.bare},{server_first.decode()},{without_proof}".encode()
        signature = hmac.digest(hashlib.new(self.digest, client_key).digest(), signed, self.digest)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self.expected = b"v=" + base64.b64encode(
            hmac.digest(hmac.digest(salted, b"Server Key", self.digest), signed, self.digest)
        )
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()


def log_in(server, client):
    answer, proof = server.final(client.final(server.first(client.first())))
    return answer, proof


def test_the_example_of_rfc_7677():
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    secret = secret_of("SCRAM-SHA-256", "pencil", salt, 4096)
    server = ScramExchange("SCRAM-SHA-256", lambda *_: secret, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", DECOY)
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    assert server.first(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO") == f"r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".encode()
    final = f"c=biws,r={nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    answer, proof = server.final(final.encode())
    assert answer == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    assert (proof.name, proof.proved, proof.version) == ("user", True, version_of(secret))


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("gs2", ["n,,", "y,,", "n,a=alice,"])
def test_a_right_password_is_proved_to_both(mechanism, gs2):
    client = Client(mechanism, "alice", "pencil-case", gs2)
    answer, proof = log_in(exchange(mechanism), client)
    assert answer == client.expected
    assert (proof.mechanism, proof.name, proof.proved) == (mechanism, "alice", True)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_password_proves_nothing_and_is_told_nothing(mechanism):
    answer, proof = log_in(exchange(mechanism), Client(mechanism, "alice", "pencil-cases"))
    assert (answer, proof.proved, proof.version) == (b"", False, "")


def test_a_name_that_is_not_there_looks_like_one_that_is():
    first = exchange().first(b"n,,n=mallory,r=theirs")
    again = exchange().first(b"n,,n=mallory,r=theirs")
    assert first == again
    assert first != exchange().first(b"n,,n=eve,r=theirs")
    assert first != exchange(decoy_key=b"\1" * 32).first(b"n,,n=mallory,r=theirs")
    answer, proof = log_in(exchange(), Client("SCRAM-SHA-256", "mallory", "pencil-case"))
    assert (answer, proof.proved) == (b"", False)


def test_nobody_is_proved_by_the_zeros_that_stand_for_a_missing_secret():
    server = exchange()
    first = server.first(b"n,,n=mallory,r=theirs").decode()
    without_proof = "c=biws,r=theirsours"
    signature = hmac.digest(bytes(32), f"n=mallory,r=theirs,{first},{without_proof}".encode(), "sha256")
    _, proof = server.final(f"{without_proof},p={base64.b64encode(signature).decode()}".encode())
    assert not proof.proved


def test_names_with_commas_and_equals_signs():
    client = Client("SCRAM-SHA-256", "a=2Cb=3Dc", "pencil-case")
    assert log_in(exchange(name="a,b=c"), client)[1].proved


def test_what_stands_after_the_nonce_is_signed_too():
    client = Client("SCRAM-SHA-256", "alice", "pencil-case")
    client.bare += ",x=extension"
    assert log_in(exchange(), client)[1].proved


def test_what_kafka_sends_of_a_password_is_the_same_secret():
    salted = hashlib.pbkdf2_hmac("sha512", b"pencil-case", b"salt", 4096)
    assert secret_of_salted("SCRAM-SHA-512", salted, b"salt", 4096) == secret_of("SCRAM-SHA-512", "pencil-case", b"salt", 4096)


def test_a_secret_does_not_show_itself():
    secret = secret_of("SCRAM-SHA-256", "pencil-case", b"salt", 4096)
    assert repr(secret) == "ScramSecret(iterations=4096)"


def test_another_secret_has_another_version():
    versions = {version_of(secret_of("SCRAM-SHA-256", "pencil-case", salt, 4096)) for salt in (b"a", b"b", b"c")}
    assert len(versions) == 3


def test_nonces_are_printable_and_differ():
    assert fresh_nonce(lambda size: bytes(size)) != fresh_nonce(lambda size: b"\1" * size)
    assert all(0x21 <= byte <= 0x7E and byte != 0x2C for byte in fresh_nonce(lambda size: b"\xff" * size).encode())


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n",
        b"n,,",
        b"n,,n=alice",
        b"n,,r=theirs,n=alice",
        b"n,,n=,r=theirs",
        b"n,,n=alice,r=",
        b"n,,m=ext,n=alice,r=theirs",
        b"p=tls-exporter,,n=alice,r=theirs",
        b"n,a=bob,n=alice,r=theirs",
        b"n,,n=al=ice,r=theirs",
        b"n,,n=al=2cice,r=theirs",
        b"n,,n=alice,r=the irs",
        b"n,,n=alice,r=the\x00irs",
        b"n,,n=alice,r=th\xc3\xa9irs",
        b"n,,n=\xff\xfe,r=theirs",
        b"n,,n=" + b"a" * (NAME_CHARS_MAX + 1) + b",r=theirs",
        b"n,,n=alice,r=" + b"t" * MESSAGE_BYTES_MAX,
        b"x,,n=alice,r=theirs",
    ],
)
def test_what_is_no_first_message_is_refused(message):
    with pytest.raises(CredentialsInvalid):
        exchange().first(message)


def test_every_truncated_message_is_refused_or_proves_nothing():
    client = Client("SCRAM-SHA-256", "alice", "pencil-case")
    whole = client.final(exchange().first(client.first()))
    for end in range(len(whole)):
        server = exchange()
        server.first(client.first())
        try:
            answer, proof = server.final(whole[:end])
        except CredentialsInvalid:
            continue
        assert (answer, proof.proved) == (b"", False)


def test_every_flipped_bit_of_the_last_message_is_refused_or_proves_nothing():
    client = Client("SCRAM-SHA-256", "alice", "pencil-case")
    whole = client.final(exchange().first(client.first()))
    for position in range(8 * len(whole)):
        spoiled = bytearray(whole)
        spoiled[position // 8] ^= 1 << position % 8
        server = exchange()
        server.first(client.first())
        try:
            _, proof = server.final(bytes(spoiled))
        except CredentialsInvalid:
            continue
        # The last base64 character has two spare bits: the same proof has more than one spelling.
        assert not proof.proved or position // 8 == len(whole) - 2


def test_messages_out_of_their_order_are_refused():
    client = Client("SCRAM-SHA-256", "alice", "pencil-case")
    with pytest.raises(CredentialsInvalid):
        exchange().final(b"c=biws,r=theirsours,p=" + base64.b64encode(bytes(32)))
    server = exchange()
    first = server.first(client.first())
    with pytest.raises(CredentialsInvalid):
        server.first(client.first())
    final = client.final(first)
    assert server.final(final)[1].proved
    with pytest.raises(CredentialsInvalid):
        server.final(final)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_no_bytes_break_it(first, final):
    server = ScramExchange("SCRAM-SHA-256", lambda *_: ScramSecret(4096, b"s", b"k" * 32, b"k" * 32), "ours", DECOY)
    for step, message in ((server.first, b"n,," + first), (server.final, b"c=biws,r=" + final)):
        try:
            step(message)
        except CredentialsInvalid:
            return
