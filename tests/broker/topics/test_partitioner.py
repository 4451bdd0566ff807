"""The Java client's partitioning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.topics.partitioner import CACHED_KEY_BYTES_MAX, Partitioner, murmur2, partition_of

# org.apache.kafka.common.utils.UtilsTest.testMurmur2
JAVA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


class TestMurmur2:
    @pytest.mark.parametrize("data", JAVA_VECTORS, ids=len)
    def test_agrees_with_the_java_client(self, data):
        assert murmur2(data) == JAVA_VECTORS[data]

    @given(st.binary(max_size=64))
    def test_is_a_signed_32_bit_number(self, data):
        assert -(2**31) <= murmur2(data) < 2**31

    @given(st.binary(max_size=64))
    def test_agrees_with_a_transcript_of_the_java_source(self, data):
        h = (0x9747B28C ^ len(data)) & 0xFFFFFFFF
        for word in range(len(data) // 4):
            k = data[4 * word] | data[4 * word + 1] << 8 | data[4 * word + 2] << 16 | data[4 * word + 3] << 24
            k = k * 0x5BD1E995 % 2**32
            k ^= k >> 24
            k = k * 0x5BD1E995 % 2**32
            h = h * 0x5BD1E995 % 2**32 ^ k
        rest = len(data) % 4
        if rest >= 3:
            h ^= data[(len(data) & ~3) + 2] << 16
        if rest >= 2:
            h ^= data[(len(data) & ~3) + 1] << 8
        if rest >= 1:
            h ^= data[len(data) & ~3]
            h = h * 0x5BD1E995 % 2**32
        h ^= h >> 13
        h = h * 0x5BD1E995 % 2**32
        h ^= h >> 15
        assert murmur2(data) % 2**32 == h


class TestPartitionOf:
    @pytest.mark.parametrize(("key", "partition"), [(b"21", 0), (b"foobar", 6), (b"abc", 7)])
    def test_is_the_positive_hash_modulo_the_partitions(self, key, partition):
        assert partition_of(key, 10) == partition

    @given(key=st.binary(max_size=40), partitions=st.integers(1, 1_000))
    def test_is_within_the_topic(self, key, partitions):
        assert 0 <= partition_of(key, partitions) < partitions


class TestPartitioner:
    @given(st.lists(st.binary(max_size=CACHED_KEY_BYTES_MAX + 4), max_size=20))
    def test_agrees_with_partition_of_cached_or_not(self, keys):
        partitioner = Partitioner("orders", 12, cache_keys_max=4)
        assert [partitioner.partition(key) for key in keys + keys] == [partition_of(key, 12) for key in keys + keys]

    def test_records_without_key_go_to_the_partition_of_the_topic_name(self):
        assert Partitioner("foobar", 12).partition(None) == partition_of(b"foobar", 12)

    def test_the_empty_key_is_a_key(self):
        assert Partitioner("foobar", 12).partition(b"") == partition_of(b"", 12)

    def test_the_cache_keeps_no_more_than_its_bound(self):
        partitioner = Partitioner("orders", 12, cache_keys_max=100)
        for number in range(1_000):
            partitioner.partition(b"%d" % number)
        assert partitioner.cached_keys == 100

    def test_long_keys_are_not_kept(self):
        partitioner = Partitioner("orders", 12)
        partitioner.partition(bytes(CACHED_KEY_BYTES_MAX))
        partitioner.partition(bytes(CACHED_KEY_BYTES_MAX + 1))
        assert partitioner.cached_keys == 1

    def test_one_partition_takes_everything(self):
        partitioner = Partitioner("orders", 1)
        assert [partitioner.partition(key) for key in (None, b"", b"21", b"foobar")] == [0, 0, 0, 0]

    @pytest.mark.parametrize("partitions", [0, -1])
    def test_a_topic_without_partitions_is_refused(self, partitions):
        with pytest.raises(ValueError, match="orders"):
            Partitioner("orders", partitions)
