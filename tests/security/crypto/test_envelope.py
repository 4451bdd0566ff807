import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.crypto.envelope import (
    HASHED_KEY_BYTES_MAX,
    WRAPPED_KEY_BYTES,
    Cipher,
    KeyHasher,
    Secret,
    derive_key,
    keyed_hash64,
    unwrap_key,
    wrap_key,
)
from security.errors import KeyWrong, TamperedData

KEY = bytes(range(32))
NONCE = bytes(12)
keys = st.binary(min_size=32, max_size=32)
nonces = st.binary(min_size=12, max_size=12)


def flipped(data):
    """Every version of `data` with one bit turned over."""
    for bit in range(len(data) * 8):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        yield bytes(altered)


class TestCipher:
    def test_is_aes_256_gcm(self):
        """Test case 14 of the GCM specification (McGrew and Viega)."""
        sealed = Cipher(bytes(32)).seal(bytes(12), bytes(16), b"")
        assert sealed.hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"

    @given(key=keys, nonce=nonces, data=st.binary(), associated=st.binary())
    def test_opens_what_it_sealed(self, key, nonce, data, associated):
        cipher = Cipher(key)
        sealed = cipher.seal(nonce, data, associated)
        assert len(sealed) == len(data) + 16
        assert cipher.open(nonce, sealed, associated) == data

    @pytest.mark.parametrize("view", [bytes, bytearray, memoryview, lambda data: memoryview(b"<" + data + b">")[1:-1]])
    def test_takes_any_contiguous_buffer(self, view):
        cipher = Cipher(KEY)
        sealed = cipher.seal(NONCE, view(b"data"), view(b"header"))
        assert cipher.open(NONCE, view(sealed), view(b"header")) == b"data"

    def test_refuses_every_flipped_bit(self):
        cipher = Cipher(KEY)
        sealed = cipher.seal(NONCE, b"reading", b"header")
        altered = [
            *((NONCE, other, b"header") for other in flipped(sealed)),
            *((NONCE, sealed, other) for other in flipped(b"header")),
            *((other, sealed, b"header") for other in flipped(NONCE)),
        ]
        for nonce, data, associated in altered:
            with pytest.raises(TamperedData):
                cipher.open(nonce, data, associated)

    def test_refuses_every_other_key(self):
        sealed = Cipher(KEY).seal(NONCE, b"reading", b"")
        for other in flipped(KEY):
            with pytest.raises(TamperedData):
                Cipher(other).open(NONCE, sealed, b"")

    def test_refuses_every_truncated_prefix(self):
        sealed = Cipher(KEY).seal(NONCE, b"reading", b"header")
        for size in range(len(sealed)):
            with pytest.raises(TamperedData, match=f"of {size} bytes"):
                Cipher(KEY).open(NONCE, sealed[:size], b"header")

    @pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
    def test_has_only_256_bit_keys(self, size):
        with pytest.raises(ValueError, match=f"32 bytes, this one {size}"):
            Cipher(bytes(size))

    @pytest.mark.parametrize("size", [0, 8, 11, 13, 16])
    def test_has_only_96_bit_nonces(self, size):
        with pytest.raises(ValueError, match=f"12 bytes, this one {size}"):
            Cipher(KEY).seal(bytes(size), b"", b"")
        with pytest.raises(ValueError, match=f"12 bytes, this one {size}"):
            Cipher(KEY).open(bytes(size), bytes(16), b"")

    def test_shows_no_key(self, shown):
        secret = b"planted-key-0123planted-key-4567"
        for thing in (Cipher(secret), Secret(secret)):
            assert "planted" not in shown(thing)
        assert Secret(secret).reveal() == secret


class TestWrappedKeys:
    @given(key=keys, wrapping=keys, context=st.binary(), nonce=nonces)
    def test_unwrap_to_the_same_key(self, key, wrapping, context, nonce):
        wrapped = wrap_key(Cipher(wrapping), key, context, lambda size: nonce[:size])
        assert len(wrapped) == WRAPPED_KEY_BYTES == 60
        assert wrapped[:12] == nonce
        assert wrapped[12:] == Cipher(wrapping).seal(nonce, key, context)
        assert unwrap_key(Cipher(wrapping), wrapped, context) == key

    def test_refuse_every_flipped_bit(self):
        wrapped = wrap_key(Cipher(KEY), bytes(32), b"context", lambda size: bytes(size))
        for altered in flipped(wrapped):
            with pytest.raises(KeyWrong, match="kek-1"):
                unwrap_key(Cipher(KEY), altered, b"context", "kek-1")
        for context in flipped(b"context"):
            with pytest.raises(KeyWrong, match="kek-1"):
                unwrap_key(Cipher(KEY), wrapped, context, "kek-1")

    @pytest.mark.parametrize("size", [*range(60), 61, 120])
    def test_have_60_bytes(self, size):
        wrapped = wrap_key(Cipher(KEY), bytes(32), b"", lambda size: bytes(size)) * 2
        with pytest.raises(KeyWrong, match=f"{size} bytes"):
            unwrap_key(Cipher(KEY), wrapped[:size], b"")

    def test_are_keys_of_32_bytes_only(self):
        with pytest.raises(ValueError, match="32 bytes, this one 31"):
            wrap_key(Cipher(KEY), bytes(31), b"", lambda size: bytes(size))


class TestDerivedKeys:
    def test_are_hkdf_sha256(self):
        """RFC 5869, appendix A.3: no salt, no info; the first 32 of its 42 bytes."""
        derived = derive_key(b"\x0b" * 22, b"")
        assert derived.hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"

    @given(root=keys, one=st.binary(), other=st.binary())
    def test_differ_by_purpose(self, root, one, other):
        assert (derive_key(root, one) == derive_key(root, other)) == (one == other)


class TestKeyHash:
    def test_is_pinned(self):
        """Stored on disk: another value would orphan every key index."""
        assert keyed_hash64(KEY, b"eu/7") == int.from_bytes(bytes.fromhex("b2a11d96ff26d3ac"), "little")

    @given(st.lists(st.binary(max_size=HASHED_KEY_BYTES_MAX + 2)), st.integers(2, 8))
    def test_of_the_hasher_is_the_same(self, record_keys, bound):
        hasher = KeyHasher(KEY, cache_keys_max=bound)
        for key in record_keys + record_keys:
            assert hasher.hash(key) == keyed_hash64(KEY, key)
            assert len(hasher) <= bound

    def test_cache_stops_at_its_bound_and_keeps_what_is_used(self):
        hasher = KeyHasher(KEY, cache_keys_max=8)
        computed = []
        for number in range(100):
            hasher.hash(b"hot")
            hasher.hash(b"%d" % number)
            computed.append(len(hasher))
        assert max(computed) == 8
        assert b"hot" in hasher._younger or b"hot" in hasher._elder

    def test_long_keys_are_not_kept(self):
        hasher = KeyHasher(KEY)
        longest = b"k" * HASHED_KEY_BYTES_MAX
        hasher.hash(longest + b"k")
        assert len(hasher) == 0
        hasher.hash(longest)
        assert len(hasher) == 1

    def test_cache_has_room_for_two_generations(self):
        with pytest.raises(ValueError, match="at least 2"):
            KeyHasher(KEY, cache_keys_max=1)

    def test_hasher_shows_neither_secret_nor_keys(self):
        hasher = KeyHasher(b"planted-secret")
        hasher.hash(b"planted-record-key")
        assert repr(hasher) == str(hasher) == "KeyHasher(1 keys remembered)"
        assert "planted" not in repr(hasher._keyed)
