import base64
import json
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.crypto.keystore import SYSTEM_TOPIC_ID, KeyStore
from security.crypto.keystore_format import Contents, generation, open_store, seal_store
from security.crypto.kms import LocalFileKms
from security.errors import KeyMissing, KeyShredded, KeyStoreDamaged, KeyStoreExists, KeyWrong

CLUSTER = bytes(range(16))
ORDERS = b"orders-topic-id."
METERS = b"meters-topic-id."
LIGHTS = b"lights-topic-id."


@pytest.fixture
def reopen(blob, random):
    def _reopen(kms):
        store = KeyStore(blob, kms, random)
        store.load()
        return store

    return _reopen


class TestCreate:
    def test_holds_the_system_topic(self, blob, kms, random):
        store = KeyStore(blob, kms, random)
        store.create(CLUSTER)
        assert store.topic_ids() == {SYSTEM_TOPIC_ID}
        assert len(store.root_key(SYSTEM_TOPIC_ID)) == 32
        assert (store.cluster_id, store.generation) == (CLUSTER, 1)

    def test_never_replaces_a_store(self, blob, kms, random, keystore):
        before = blob.data
        with pytest.raises(KeyStoreExists, match="never overwritten"):
            KeyStore(blob, kms, random).create(CLUSTER)
        assert blob.data == before

    def test_never_replaces_a_damaged_store(self, blob, kms, random):
        blob.data = b""
        with pytest.raises(KeyStoreExists):
            KeyStore(blob, kms, random).create(CLUSTER)

    @pytest.mark.parametrize("size", [0, 15, 17, 36])
    def test_has_ids_of_16_bytes(self, blob, kms, random, keystore, size):
        blob.data = None
        with pytest.raises(ValueError, match=f"16 bytes, this one {size}"):
            KeyStore(blob, kms, random).create(bytes(size))
        with pytest.raises(ValueError, match=f"16 bytes, this one {size}"):
            keystore.add(bytes(size))

    @pytest.mark.parametrize("use", [KeyStore.topic_ids, lambda s: s.add(ORDERS), lambda s: s.root_key(ORDERS), KeyStore.rewrap])
    def test_comes_before_any_use(self, blob, kms, random, use):
        with pytest.raises(RuntimeError, match="create or load"):
            use(KeyStore(blob, kms, random))
        assert blob.data is None


class TestLoad:
    def test_gives_the_same_keys(self, keystore, kms, reopen):
        store = reopen(kms)
        assert store.topic_ids() == keystore.topic_ids() == {SYSTEM_TOPIC_ID, ORDERS, METERS}
        for topic in store.topic_ids():
            assert store.root_key(topic) == keystore.root_key(topic)
        assert (store.cluster_id, store.generation) == (CLUSTER, 2)

    def test_names_a_missing_store(self, blob, kms, random):
        with pytest.raises(KeyMissing, match="the data folder does not hold any key: bring its key store back"):
            KeyStore(blob, kms, random).load()

    def test_names_a_missing_kek(self, keystore, kms, reopen, tmp_path):
        with pytest.raises(KeyMissing, match=f"other.json does not hold the key {kms.key_id}"):
            reopen(LocalFileKms.create(tmp_path / "other.json"))

    def test_names_a_wrong_kek(self, keystore, kms, reopen, tmp_path):
        """Somebody put another key under the old name."""
        path = tmp_path / "keks.json"
        content = json.loads(path.read_bytes())
        content["keys"][0]["key"] = base64.b64encode(bytes(32)).decode()
        path.write_text(json.dumps(content))
        with pytest.raises(KeyWrong, match=f"the key {kms.key_id} does not open the key store"):
            reopen(LocalFileKms.load(path))

    def test_names_a_retired_kek(self, keystore, kms, reopen):
        old = kms.key_id
        kms.rotate()
        kms.retire(old)
        with pytest.raises(KeyMissing, match=f"the key {old}: it is there but retired"):
            reopen(kms)

    def test_calls_a_half_written_store_damaged(self, keystore, blob, kms, reopen):
        whole = blob.data
        for size in range(len(whole)):
            blob.data = whole[:size]
            with pytest.raises(KeyStoreDamaged):
                reopen(kms)


class TestAdd:
    def test_makes_a_key_of_its_own_for_each_topic(self, keystore):
        keystore.add(LIGHTS)
        roots = {keystore.root_key(topic) for topic in keystore.topic_ids()}
        assert len(roots) == 4

    def test_keeps_the_key_that_a_topic_has(self, keystore, blob):
        root, written = keystore.root_key(ORDERS), blob.data
        keystore.add(ORDERS)
        assert keystore.root_key(ORDERS) == root
        assert blob.data == written

    def test_of_many_is_one_write(self, keystore):
        before = keystore.generation
        keystore.add_many(bytes([number] * 16) for number in range(1, 101))
        assert keystore.generation == before + 1
        assert len(keystore.topic_ids()) == 103

    def test_that_fails_changes_nothing(self, keystore, blob, kms, reopen):
        written, blob.failing = blob.data, True
        with pytest.raises(OSError, match="No space left"):
            keystore.add(LIGHTS)
        assert LIGHTS not in keystore
        assert blob.data == written
        with pytest.raises(KeyShredded):
            keystore.root_key(LIGHTS)

    def test_never_writes_one_generation_twice(self, keystore, blob):
        """The failed write may have reached one of the two copies."""
        before, blob.failing = keystore.generation, True
        with pytest.raises(OSError, match="No space left"):
            keystore.add(LIGHTS)
        blob.failing = False
        keystore.add(LIGHTS)
        assert generation(blob.data) == keystore.generation == before + 2


class TestShred:
    def test_takes_the_entry_out_of_the_bytes(self, keystore, blob, kms, reopen):
        wrapped = open_store(blob.data, kms).entries[ORDERS].wrapped
        size = len(blob.data)
        keystore.shred(ORDERS)
        assert len(blob.data) == size - (16 + 2 + 2 + len(wrapped))
        assert set(open_store(blob.data, kms).entries) == {SYSTEM_TOPIC_ID, METERS}
        assert wrapped not in blob.data

    def test_drops_the_unwrapped_key(self, keystore, kms, reopen):
        root = keystore.root_key(ORDERS)
        assert len(root) == 32
        keystore.shred(ORDERS)
        for store in (keystore, reopen(kms)):
            assert ORDERS not in store
            with pytest.raises(KeyShredded, match=ORDERS.hex()):
                store.root_key(ORDERS)

    def test_leaves_the_others(self, keystore):
        root = keystore.root_key(METERS)
        keystore.shred(ORDERS)
        assert keystore.root_key(METERS) == root

    def test_of_a_topic_without_a_key_says_so(self, keystore, blob):
        written = blob.data
        with pytest.raises(KeyShredded, match=LIGHTS.hex()):
            keystore.shred(LIGHTS)
        assert blob.data == written

    def test_spares_the_system_topic(self, keystore):
        with pytest.raises(ValueError, match="never shredded"):
            keystore.shred(SYSTEM_TOPIC_ID)
        assert SYSTEM_TOPIC_ID in keystore

    def test_that_fails_keeps_the_key(self, keystore, blob):
        root, blob.failing = keystore.root_key(ORDERS), True
        with pytest.raises(OSError, match="No space left"):
            keystore.shred(ORDERS)
        assert keystore.root_key(ORDERS) == root

    def test_then_add_makes_another_key(self, keystore):
        root = keystore.root_key(ORDERS)
        keystore.shred(ORDERS)
        keystore.add(ORDERS)
        assert keystore.root_key(ORDERS) != root


class TestRotation:
    def test_needs_both_keks_until_rewrapped(self, keystore, kms, reopen):
        old = kms.key_id
        new = kms.rotate()
        assert keystore.kek_ids() == [old]
        keystore.add(LIGHTS)
        assert keystore.kek_ids() == reopen(kms).kek_ids() == [old, new]
        keystore.rewrap()
        assert keystore.kek_ids() == [new]

    def test_rewrap_changes_no_root_key(self, keystore, kms, reopen):
        roots = {topic: keystore.root_key(topic) for topic in keystore.topic_ids()}
        old = kms.key_id
        kms.rotate()
        keystore.rewrap()
        kms.retire(old)
        store = reopen(kms)
        assert {topic: store.root_key(topic) for topic in store.topic_ids()} == roots

    def test_rewrap_makes_a_new_store_key(self, keystore, blob, kms):
        before = open_store(blob.data, kms).store_key.reveal()
        kms.rotate()
        keystore.rewrap()
        assert open_store(blob.data, kms).store_key.reveal() != before

    def test_shredding_the_last_topic_of_a_kek_frees_it(self, keystore, kms, reopen):
        old, new = kms.key_id, kms.rotate()
        keystore.add(LIGHTS)
        assert keystore.kek_ids() == [old, new]
        keystore.shred(LIGHTS)
        assert keystore.kek_ids() == reopen(kms).kek_ids() == [old]


def test_entry_moved_to_another_topic_does_not_open(keystore, blob, kms, random, reopen):
    """Even by a writer that has the store key: the KEK's wrap names the topic."""
    real = open_store(blob.data, kms)
    moved = {**real.entries, METERS: real.entries[ORDERS]}
    blob.data = seal_store(Contents(real.cluster_id, 9, real.store_key, real.store_key_wraps, moved), random)
    store = reopen(kms)
    assert store.root_key(ORDERS) == keystore.root_key(ORDERS)
    with pytest.raises(KeyStoreDamaged, match=f"the root key of topic {METERS.hex()}"):
        store.root_key(METERS)


def test_root_key_unwraps_once(keystore, kms, reopen):
    calls = []

    class Watched:
        key_id = kms.key_id

        def unwrap(self, key_id, wrapped, context):
            calls.append(context)
            return kms.unwrap(key_id, wrapped, context)

    store = reopen(Watched())
    assert len(calls) == 1, "loading checks the store key and unwraps no topic"
    for _ in range(3):
        store.root_key(ORDERS)
    assert len(calls) == 2


def test_key_unwrapped_by_a_reader_during_a_shredding_does_not_stay(keystore, kms, blob, random):
    """The reader is inside the KMS when the owner shreds: the owner waits, and what the reader cached goes."""
    reading, shredding = threading.Event(), threading.Event()

    class Slow:
        key_id = kms.key_id

        def wrap(self, plaintext, context):
            return kms.wrap(plaintext, context)

        def unwrap(self, key_id, wrapped, context):
            if context.endswith(ORDERS):
                reading.set()
                assert shredding.wait(5)
            return kms.unwrap(key_id, wrapped, context)

    store = KeyStore(blob, Slow(), random)
    store.load()
    reader = threading.Thread(target=store.root_key, args=(ORDERS,))
    owner = threading.Thread(target=store.shred, args=(ORDERS,))
    reader.start()
    assert reading.wait(5)
    owner.start()
    shredding.set()
    reader.join(5)
    owner.join(5)
    with pytest.raises(KeyShredded):
        store.root_key(ORDERS)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "shred", "rotate", "rewrap", "reload"]), st.integers(1, 4)), max_size=15))
def test_any_history_keeps_every_living_key(tmp_path_factory, new_blob, steps):
    kms = LocalFileKms.create(tmp_path_factory.mktemp("kms") / "keks.json")
    blob = new_blob()
    store = KeyStore(blob, kms, os.urandom)
    store.create(CLUSTER)
    living = {SYSTEM_TOPIC_ID: store.root_key(SYSTEM_TOPIC_ID)}
    for step, number in steps:
        topic = bytes([number] * 16)
        match step:
            case "add":
                store.add(topic)
                assert living.setdefault(topic, store.root_key(topic)) == store.root_key(topic)
            case "shred" if topic in living:
                store.shred(topic)
                del living[topic]
            case "rotate":
                kms.rotate()
            case "rewrap":
                store.rewrap()
                assert store.kek_ids() == [kms.key_id]
            case "reload":
                store = KeyStore(blob, kms, os.urandom)
                store.load()
        assert store.generation == generation(blob.data)
        assert set(store.kek_ids()) <= set(kms.key_ids())
        assert {topic: store.root_key(topic) for topic in store.topic_ids()} == living


def test_shows_no_key(keystore, random, shown):
    for topic in keystore.topic_ids():
        keystore.root_key(topic)
    keystore.rewrap()
    seen = shown(keystore)
    assert len(random.keys) == 6, "a KEK, two store keys, three root keys"
    for key in random.keys:
        assert repr(key)[2:-1] not in seen
        assert key.hex() not in seen


def test_errors_show_no_key(keystore, random, kms):
    keystore.shred(ORDERS)
    with pytest.raises(KeyShredded) as refusal:
        keystore.root_key(ORDERS)
    for key in random.keys:
        assert key.hex() not in f"{refusal.value!r} {refusal.value}"
