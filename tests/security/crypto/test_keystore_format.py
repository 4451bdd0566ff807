import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from security.crypto.envelope import Secret
from security.crypto.keystore_format import Contents, Entry, generation, open_store, root_key_context, seal_store
from security.crypto.kms import LocalFileKms
from security.errors import KeyFormatUnsupported, KeyMissing, KeyProblem, KeyStoreDamaged, KeyWrong

CLUSTER = bytes(range(16))
ONE, TWO = b"topic-number-one", b"topic-number-two"
STORE_KEY = bytes(range(32))
ROOTS = {ONE: b"1" * 32, TWO: b"2" * 32}


@pytest.fixture
def contents(kms):
    entries = {topic: Entry(kms.key_id, kms.wrap(root, root_key_context(CLUSTER, topic))) for topic, root in ROOTS.items()}
    wrap = kms.wrap(STORE_KEY, b"sprawl/v1/store-key" + CLUSTER)
    return Contents(CLUSTER, 7, Secret(STORE_KEY), {kms.key_id: wrap}, entries)


@pytest.fixture
def data(contents, random):
    return seal_store(contents, random)


def with_digest(body):
    """As somebody would write it who altered the store on purpose."""
    return body + hashlib.sha256(body).digest()


def flipped(data):
    for bit in range(len(data) * 8):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        yield bytes(altered)


def test_opens_what_was_sealed(data, contents, kms):
    opened = open_store(data, kms)
    assert opened.store_key.reveal() == STORE_KEY
    assert opened.entries == contents.entries
    assert (opened.cluster_id, opened.generation) == (CLUSTER, 7)
    assert generation(data) == 7


def test_is_laid_out_as_drawn(data, kms):
    """An independent reader of the drawing in the module."""
    magic, version, cluster, written, keks, size = struct.unpack_from("<8sH16sQHH", data)
    assert (magic, version, cluster, written, keks) == (b"SPRAWLKS", 1, CLUSTER, 7, 1)
    at = 38
    kek_id = data[at : at + size].decode()
    at += size
    (size,) = struct.unpack_from("<H", data, at)
    store_key = kms.unwrap(kek_id, data[at + 2 : at + 2 + size], b"sprawl/v1/store-key" + CLUSTER)
    at += 2 + size
    nonce, size = struct.unpack_from("<12sI", data, at)
    at += 16
    table = AESGCM(store_key).decrypt(nonce, data[at : at + size], data[:at])
    at += size
    assert data[at:] == hashlib.sha256(data[:at]).digest()

    assert struct.unpack_from("<I", table) == (2,)
    found, at = {}, 4
    while at < len(table):
        topic, number, size = struct.unpack_from("<16sHH", table, at)
        assert number == 0
        context = b"sprawl/v1/topic-root-key" + CLUSTER + topic
        found[topic] = kms.unwrap(kek_id, table[at + 20 : at + 20 + size], context)
        at += 20 + size
    assert list(found.items()) == sorted(ROOTS.items())


def test_calls_every_flipped_bit_damage(data, kms):
    for altered in flipped(data):
        with pytest.raises(KeyStoreDamaged):
            open_store(altered, kms)


def test_refuses_every_flipped_bit_even_with_the_digest_made_right(data, kms):
    refusals = set()
    for altered in flipped(data[:-32]):
        with pytest.raises(KeyProblem) as refusal:
            open_store(with_digest(altered), kms)
        refusals.add(type(refusal.value))
    assert refusals == {KeyStoreDamaged, KeyFormatUnsupported, KeyMissing, KeyWrong}


def test_refuses_every_truncated_prefix(data, kms):
    for size in range(len(data)):
        with pytest.raises(KeyStoreDamaged):
            open_store(data[:size], kms)
        with pytest.raises(KeyStoreDamaged):
            open_store(with_digest(data[: max(0, size - 32)]), kms)


def test_refuses_what_follows_the_last_field(data, kms):
    with pytest.raises(KeyStoreDamaged, match="SHA-256"):
        open_store(data + b"\0", kms)
    with pytest.raises(KeyStoreDamaged, match="1 bytes follow"):
        open_store(with_digest(data[:-32] + b"\0"), kms)


def test_tells_a_newer_version_from_damage(data, kms):
    newer = with_digest(data[:8] + struct.pack("<H", 2) + data[10:26] + b"all else is different")
    with pytest.raises(KeyFormatUnsupported, match="version 2, this build reads up to 1"):
        open_store(newer, kms)


def test_names_a_kek_that_is_another(data, kms, tmp_path):
    class SameName:
        """Another key under the name that the store asks for."""

        key_id = kms.key_id
        other = LocalFileKms.create(tmp_path / "other.json")

        def unwrap(self, key_id, wrapped, context):
            return self.other.unwrap(self.other.key_id, wrapped, context)

    with pytest.raises(KeyWrong, match=f"the key {kms.key_id} does not open the key store"):
        open_store(data, SameName())


def test_names_a_kek_that_is_missing(data, kms, tmp_path):
    with pytest.raises(KeyMissing, match=f"does not hold the key {kms.key_id}"):
        open_store(data, LocalFileKms.create(tmp_path / "other.json"))


def test_takes_no_table_of_another_generation(contents, kms, random):
    """Bringing back one topic's entry, or the whole table, into the header of today."""
    before = Contents(CLUSTER, 6, contents.store_key, contents.store_key_wraps, {ONE: contents.entries[TWO]})
    old, new = seal_store(before, random), seal_store(contents, random)
    head = 38 + len(kms.key_id) + 2 + 60
    with pytest.raises(KeyStoreDamaged, match="does not authenticate"):
        open_store(with_digest(new[:head] + old[head:-32]), kms)


def test_refuses_keks_that_disagree(contents, kms, random):
    kms.rotate()
    wraps = {**contents.store_key_wraps, kms.key_id: kms.wrap(bytes(32), b"sprawl/v1/store-key" + CLUSTER)}
    data = seal_store(Contents(CLUSTER, 7, contents.store_key, wraps, contents.entries), random)
    with pytest.raises(KeyStoreDamaged, match="different store keys"):
        open_store(data, kms)


class TestTableThatContradictsItself:
    """Under a right seal: what only a faulty writer can make."""

    @pytest.mark.parametrize(
        ("table", "complaint"),
        [
            (b"", "past the store"),
            (struct.pack("<I", 1), "past the store"),
            (struct.pack("<I16sHH", 1, ONE, 1, 0), "contradicts"),
            (struct.pack("<I", 2) + 2 * struct.pack("<16sHH", ONE, 0, 0), "contradicts"),
            (struct.pack("<I16sHH", 1, ONE, 0, 60), "past the store"),
            (struct.pack("<I16sHH", 0, ONE, 0, 0), "20 bytes follow"),
            (struct.pack("<I", 2**32 - 1), "past the store"),
        ],
    )
    def test_is_refused(self, data, kms, table, complaint):
        head = 38 + len(kms.key_id) + 2 + 60
        clear = data[: head + 12] + struct.pack("<I", len(table) + 16)
        sealed = AESGCM(STORE_KEY).encrypt(data[head : head + 12], table, clear)
        with pytest.raises(KeyStoreDamaged, match=complaint):
            open_store(with_digest(clear + sealed), kms)

    def test_is_refused_without_keks_or_with_one_twice(self, data, kms):
        kek = data[36 : 38 + len(kms.key_id) + 2 + 60]
        rest = data[36 + len(kek) : -32]
        for count, keks in ((0, b""), (2, kek + kek)):
            with pytest.raises(KeyStoreDamaged, match=f"its {count} KEKs"):
                open_store(with_digest(data[:34] + struct.pack("<H", count) + keks + rest), kms)

    def test_is_refused_with_an_id_that_is_no_text(self, data, kms):
        with pytest.raises(KeyStoreDamaged, match="not UTF-8"):
            open_store(with_digest(data[:38] + b"\xff" + data[39:-32]), kms)
