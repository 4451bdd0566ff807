import os
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.crypto.envelope import Cipher, Secret, derive_key, unwrap_key
from security.crypto.keyring import SEALS_MAX, Epoch, Keyring, KeyringCounts
from security.crypto.keystore import SYSTEM_TOPIC_ID, KeyStore
from security.crypto.keystore_format import Contents, Entry, root_key_context, seal_store
from security.crypto.kms import LocalFileKms
from security.errors import KeyMissing, KeyShredded, NonceExhausted, TamperedData

CLUSTER = bytes(range(16))
ORDERS = b"orders-topic-id."
METERS = b"meters-topic-id."
LIGHTS = b"lights-topic-id."


@pytest.fixture
def keyring(keystore, random):
    return Keyring(keystore, random)


def restarted(keyring, keystore, **limits):
    """The next process: the same store, and the wrapped keys that lie on disk."""
    later = Keyring(keystore, os.urandom, **limits)
    for topic, wrapped in keyring._wrapped.items():
        for key_id, key in wrapped.items():
            later.adopt(topic, key_id, key)
    return later


class TestSealing:
    def test_stays_in_one_epoch(self, keyring):
        assert keyring.sealing_epoch(ORDERS) is keyring.sealing_epoch(ORDERS)

    def test_has_an_epoch_per_topic(self, keyring):
        orders, meters = keyring.sealing_epoch(ORDERS), keyring.sealing_epoch(METERS)
        assert orders.wrapped != meters.wrapped
        sealed = orders.cipher.seal(bytes(12), b"data", b"")
        with pytest.raises(TamperedData):
            meters.cipher.open(bytes(12), sealed, b"")

    def test_wraps_the_key_as_decision_0001_says(self, keyring, keystore):
        epoch = keyring.sealing_epoch(ORDERS)
        context = CLUSTER + ORDERS + struct.pack("<I", epoch.key_id)
        key = unwrap_key(Cipher(keystore.root_key(ORDERS)), epoch.wrapped, context)
        sealed = epoch.cipher.seal(bytes(12), b"data", b"header")
        assert Cipher(key).open(bytes(12), sealed, b"header") == b"data"
        assert len(epoch.wrapped) == 60

    def test_of_a_shredded_topic_is_refused(self, keyring, keystore):
        keyring.sealing_epoch(ORDERS)
        keystore.shred(ORDERS)
        for topic in (ORDERS, LIGHTS):
            with pytest.raises(KeyShredded, match=topic.hex()):
                keyring.sealing_epoch(topic)

    def test_rotates_on_demand(self, keyring):
        first = keyring.sealing_epoch(ORDERS)
        meters = keyring.sealing_epoch(METERS)
        keyring.rotate(ORDERS)
        second = keyring.sealing_epoch(ORDERS)
        assert (first.key_id, first.wrapped) != (second.key_id, second.wrapped)
        assert keyring.sealing_epoch(METERS) is meters
        assert keyring.opening_cipher(ORDERS, first.key_id) is first.cipher

    def test_avoids_key_ids_in_use(self, keystore):
        draws = iter([b"\0\0\0\7", b"k" * 32, b"n" * 12])
        keyring = Keyring(keystore, lambda count: next(draws))
        assert keyring.sealing_epoch(ORDERS).key_id == 0x07000000
        keyring.rotate(ORDERS)
        draws = iter([b"\0\0\0\7", b"\0\0\0\7", b"\0\0\0\1", b"K" * 32, b"N" * 12])
        assert keyring.sealing_epoch(ORDERS).key_id == 0x01000000


class TestNonces:
    def test_count_from_zero_big_endian(self, keyring):
        epoch = keyring.sealing_epoch(ORDERS)
        assert [epoch.next_nonce().hex() for _ in range(3)] == ["00" * 12, "00" * 11 + "01", "00" * 11 + "02"]

    def test_end_at_the_bound_and_a_new_epoch_opens(self, keystore, random):
        keyring = Keyring(keystore, random, seals_max=3)
        epoch = keyring.sealing_epoch(ORDERS)
        assert len({epoch.next_nonce() for _ in range(3)}) == 3
        assert epoch.exhausted
        for _ in range(2):
            with pytest.raises(NonceExhausted, match=f"{epoch.key_id:08x} of topic {ORDERS.hex()} has sealed 3 times"):
                epoch.next_nonce()
        fresh = keyring.sealing_epoch(ORDERS)
        assert fresh.key_id != epoch.key_id
        assert fresh.next_nonce() == bytes(12)

    def test_have_a_bound_of_2_to_the_32_by_default(self, keyring):
        assert SEALS_MAX == 2**32
        epoch = keyring.sealing_epoch(ORDERS)
        epoch._seals = 2**32 - 1
        assert keyring.sealing_epoch(ORDERS) is epoch
        assert epoch.next_nonce() == struct.pack(">IQ", 0, 2**32 - 1)
        with pytest.raises(NonceExhausted):
            epoch.next_nonce()
        assert keyring.sealing_epoch(ORDERS) is not epoch

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.sampled_from(["seal", "seal", "seal", "rotate", "restart"]), max_size=40), st.integers(1, 5))
    def test_never_meet_a_key_twice_and_all_opens_at_the_end(self, history_store, steps, bound):
        keyring = Keyring(history_store, os.urandom, seals_max=bound)
        used, sealed = set(), []
        for number, step in enumerate(steps):
            match step:
                case "rotate":
                    keyring.rotate(ORDERS)
                case "restart":
                    keyring = restarted(keyring, history_store, seals_max=bound)
                case "seal":
                    epoch = keyring.sealing_epoch(ORDERS)
                    nonce = epoch.next_nonce()
                    assert (epoch.wrapped, nonce) not in used
                    used.add((epoch.wrapped, nonce))
                    sealed.append((epoch.key_id, nonce, epoch.cipher.seal(nonce, b"%d" % number, b""), b"%d" % number))
        reader = restarted(keyring, history_store)
        for key_id, nonce, data, clear in sealed:
            assert reader.opening_cipher(ORDERS, key_id).open(nonce, data, b"") == clear


@pytest.fixture(scope="module")
def history_store(tmp_path_factory, new_blob):
    store = KeyStore(new_blob(), LocalFileKms.create(tmp_path_factory.mktemp("kms") / "keks.json"), os.urandom)
    store.create(CLUSTER)
    store.add(ORDERS)
    return store


class TestOpening:
    def test_works_in_the_next_process(self, keyring, keystore):
        epoch = keyring.sealing_epoch(ORDERS)
        nonce = epoch.next_nonce()
        sealed = epoch.cipher.seal(nonce, b"data", b"header")
        later = restarted(keyring, keystore)
        assert later.opening_cipher(ORDERS, epoch.key_id).open(nonce, sealed, b"header") == b"data"
        assert later.wrapped(ORDERS, epoch.key_id) == epoch.wrapped

    def test_never_seals_with_a_key_of_an_earlier_process(self, keyring, keystore):
        epoch = keyring.sealing_epoch(ORDERS)
        assert restarted(keyring, keystore).sealing_epoch(ORDERS).key_id != epoch.key_id

    @pytest.mark.parametrize("topic", [ORDERS, METERS])
    def test_names_an_unknown_key(self, keyring, topic):
        keyring.adopt(ORDERS, 1, bytes(60))
        for look_up in (keyring.opening_cipher, keyring.wrapped):
            with pytest.raises(KeyMissing, match=f"topic {topic.hex()} does not hold the key 0000abcd"):
                look_up(topic, 0xABCD)

    def test_refuses_every_flipped_bit_of_a_wrapped_key(self, keyring, keystore):
        epoch = keyring.sealing_epoch(ORDERS)
        for bit in range(480):
            altered = bytearray(epoch.wrapped)
            altered[bit // 8] ^= 1 << bit % 8
            later = Keyring(keystore, os.urandom)
            later.adopt(ORDERS, epoch.key_id, bytes(altered))
            with pytest.raises(TamperedData, match=f"the wrapped key {epoch.key_id:08x} of topic {ORDERS.hex()}"):
                later.opening_cipher(ORDERS, epoch.key_id)

    def test_refuses_a_key_under_another_id_or_topic(self, keyring, keystore):
        epoch = keyring.sealing_epoch(ORDERS)
        later = Keyring(keystore, os.urandom)
        for topic, key_id in ((ORDERS, epoch.key_id ^ 1), (METERS, epoch.key_id)):
            later.adopt(topic, key_id, epoch.wrapped)
            with pytest.raises(TamperedData, match="the wrapped key"):
                later.opening_cipher(topic, key_id)
        assert later.describe().ciphers_cached == 0

    def test_refuses_a_key_of_another_cluster(self, keyring, keystore, blob, kms, random):
        """The same root key, but the store says it belongs elsewhere."""
        epoch = keyring.sealing_epoch(ORDERS)
        root = keystore.root_key(ORDERS)
        entry = Entry(kms.key_id, kms.wrap(root, root_key_context(bytes(16), ORDERS)))
        wraps = {kms.key_id: kms.wrap(bytes(32), b"sprawl/v1/store-key" + bytes(16))}
        blob.data = seal_store(Contents(bytes(16), 1, Secret(bytes(32)), wraps, {ORDERS: entry}), random)
        foreign = KeyStore(blob, kms, random)
        foreign.load()
        assert foreign.root_key(ORDERS) == root
        with pytest.raises(TamperedData, match="the wrapped key"):
            restarted(keyring, foreign).opening_cipher(ORDERS, epoch.key_id)

    def test_adopts_the_same_key_again_and_no_other(self, keyring):
        epoch = keyring.sealing_epoch(ORDERS)
        keyring.adopt(ORDERS, epoch.key_id, epoch.wrapped)
        with pytest.raises(TamperedData, match="not the one read before"):
            keyring.adopt(ORDERS, epoch.key_id, bytes(60))
        assert keyring.wrapped(ORDERS, epoch.key_id) == epoch.wrapped

    @pytest.mark.parametrize("size", [0, 59, 61])
    def test_adopts_only_wrapped_keys_of_60_bytes(self, keyring, size):
        with pytest.raises(TamperedData, match=f"{size} bytes long"):
            keyring.adopt(ORDERS, 1, bytes(size))
        assert keyring.describe().topics == 0

    def test_keeps_a_bounded_number_of_ciphers(self, keystore, random):
        keyring = Keyring(keystore, random, ciphers_max=3, seals_max=1)
        epochs = []
        for _ in range(5):
            epochs.append(keyring.sealing_epoch(ORDERS))
            epochs[-1].next_nonce()
            assert keyring.describe().ciphers_cached == min(len(epochs), 3)
        for epoch in epochs + epochs[::-1]:
            sealed = epoch.cipher.seal(bytes(12), b"data", b"")
            assert keyring.opening_cipher(ORDERS, epoch.key_id).open(bytes(12), sealed, b"") == b"data"
            assert keyring.describe().ciphers_cached == 3

    def test_evicts_the_cipher_not_used_for_longest(self, keystore, random):
        keyring = Keyring(keystore, random, ciphers_max=2, seals_max=1)
        epochs = []
        for _ in range(3):
            epochs.append(keyring.sealing_epoch(ORDERS))
            epochs[-1].next_nonce()
            keyring.opening_cipher(ORDERS, epochs[0].key_id)
        assert keyring.opening_cipher(ORDERS, epochs[0].key_id) is epochs[0].cipher
        assert keyring.opening_cipher(ORDERS, epochs[2].key_id) is epochs[2].cipher
        assert keyring.opening_cipher(ORDERS, epochs[1].key_id) is not epochs[1].cipher


class TestForgetting:
    def test_drops_every_key_of_the_topic(self, keyring):
        epoch, other = keyring.sealing_epoch(ORDERS), keyring.sealing_epoch(METERS)
        keyring.forget(ORDERS)
        with pytest.raises(KeyMissing):
            keyring.opening_cipher(ORDERS, epoch.key_id)
        assert keyring.describe() == KeyringCounts(topics=1, active=1, previous=0, ciphers_cached=1)
        assert keyring.opening_cipher(METERS, other.key_id) is other.cipher
        assert keyring.sealing_epoch(ORDERS).wrapped != epoch.wrapped

    def test_of_an_unknown_topic_is_nothing(self, keyring):
        keyring.forget(LIGHTS)
        assert keyring.describe().topics == 0

    def test_is_not_awaited_after_a_shredding(self, keyring, keystore):
        """A cipher still cached is not handed out once its root key is gone."""
        epoch = keyring.sealing_epoch(ORDERS)
        keystore.shred(ORDERS)
        with pytest.raises(KeyShredded):
            keyring.opening_cipher(ORDERS, epoch.key_id)
        with pytest.raises(KeyShredded):
            keyring.derived(ORDERS, b"purpose")

    def test_while_a_reader_unwraps_leaves_no_cipher_behind(self, keyring, keystore, monkeypatch):
        epoch = keyring.sealing_epoch(ORDERS)
        later = restarted(keyring, keystore)
        unwrapping, forgotten = threading.Event(), threading.Event()
        root_key = keystore.root_key

        def slow_root_key(topic):
            unwrapping.set()
            assert forgotten.wait(5)
            return root_key(topic)

        monkeypatch.setattr(keystore, "root_key", slow_root_key)
        reader = threading.Thread(target=later.opening_cipher, args=(ORDERS, epoch.key_id))
        reader.start()
        assert unwrapping.wait(5)
        later.forget(ORDERS)
        forgotten.set()
        reader.join(5)
        assert later.describe() == KeyringCounts(topics=0, active=0, previous=0, ciphers_cached=0)


def test_many_readers_open_while_the_owner_seals_and_rotates(keystore, random):
    keyring = Keyring(keystore, random, ciphers_max=4, seals_max=2)
    sealed, failures, done = [], [], threading.Event()

    def read():
        try:
            while not done.is_set():
                for key_id, nonce, data in list(sealed):
                    assert keyring.opening_cipher(ORDERS, key_id).open(nonce, data, b"") == b"data"
        except Exception as failure:
            failures.append(failure)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(60):
        epoch = keyring.sealing_epoch(ORDERS)
        nonce = epoch.next_nonce()
        sealed.append((epoch.key_id, nonce, epoch.cipher.seal(nonce, b"data", b"")))
    done.set()
    for reader in readers:
        reader.join(10)
    assert failures == []
    assert keyring.describe() == KeyringCounts(topics=1, active=1, previous=29, ciphers_cached=4)


def test_derived_keys_differ_by_topic_and_purpose(keyring, keystore):
    derived = {keyring.derived(topic, purpose) for topic in (SYSTEM_TOPIC_ID, ORDERS) for purpose in (b"footer", b"manifest")}
    assert len(derived) == 4
    assert keyring.derived(ORDERS, b"footer") == derive_key(keystore.root_key(ORDERS), b"footer")
    with pytest.raises(KeyShredded):
        keyring.derived(LIGHTS, b"footer")


def test_shows_no_key(keyring, random, shown):
    epoch = keyring.sealing_epoch(ORDERS)
    keyring.opening_cipher(ORDERS, epoch.key_id)
    assert isinstance(epoch, Epoch)
    seen = shown(keyring) + shown(epoch) + shown(keyring.describe())
    assert "Epoch(topic" in seen
    assert len(random.keys) == 6, "a KEK, a store key, three root keys, a DEK"
    for key in random.keys:
        assert repr(key)[2:-1] not in seen
        assert key.hex() not in seen
