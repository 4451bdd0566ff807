"""Rate limits per principal: the generic cell rate algorithm against a bucket that is filled drop by drop."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.policy.quotas import Meter, Quota, Quotas, RateLimit

MS = 1_000_000
S = 1_000 * MS


class Bucket:
    """The textbook's token bucket: exact for whole milliseconds and one unit a millisecond."""

    def __init__(self, burst):
        self.burst, self.level, self.at_ms = burst, burst, 0

    def admit(self, cost, now_ms):
        self.level = min(self.burst, self.level + now_ms - self.at_ms)
        self.at_ms = now_ms
        wanted = min(cost, self.burst)  # more than the burst: wait until full, then go into debt
        if wanted > self.level:
            return wanted - self.level
        self.level -= cost
        return 0


@given(st.integers(1, 50), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 80)), max_size=60))
def test_a_meter_is_a_bucket_that_refills_at_the_rate(burst, requests):
    meter, bucket, now_ms = Meter(RateLimit(1_000, burst)), Bucket(burst), 0
    for pause_ms, cost in requests:
        now_ms += pause_ms
        assert meter.admit("ann", cost, now_ms * MS) == bucket.admit(cost, now_ms)


def test_a_burst_passes_and_then_the_rate():
    meter = Meter(RateLimit(rate_per_s=10, burst=3))
    assert [meter.admit("ann", 1, 0) for _ in range(4)] == [0, 0, 0, 100]
    assert meter.admit("ann", 1, 99 * MS) == 1
    assert meter.admit("ann", 1, 100 * MS) == 0


def test_the_time_to_retry_is_enough_and_a_millisecond_less_is_not():
    meter = Meter(RateLimit(rate_per_s=3, burst=1))
    assert meter.admit("ann", 1, 0) == 0
    wait_ms = meter.admit("ann", 1, 5 * MS)
    assert meter.admit("ann", 1, (5 + wait_ms - 1) * MS) == 1
    assert meter.admit("ann", 1, (5 + wait_ms) * MS) == 0


def test_a_refused_request_is_not_charged():
    meter = Meter(RateLimit(rate_per_s=1, burst=1))
    assert meter.admit("ann", 1, 0) == 0
    assert {meter.admit("ann", 1, 0) for _ in range(100)} == {1_000}


def test_more_than_the_burst_waits_for_a_full_recovery_and_goes_into_debt():
    meter = Meter(RateLimit(rate_per_s=100, burst=100))
    assert meter.admit("ann", 500, 0) == 0
    assert meter.admit("ann", 500, 0) == 5_000
    assert meter.admit("ann", 1, 4 * S) == 10
    assert meter.admit("ann", 500, 5 * S) == 0


def test_principals_do_not_pay_for_each_other():
    meter = Meter(RateLimit(1, 1))
    assert meter.admit("ann", 1, 0) == 0
    assert meter.admit("bob", 1, 0) == 0
    assert meter.admit("ann", 1, 0) > 0


class TestBound:
    def test_the_tracked_principals_are_bounded(self):
        meter = Meter(RateLimit(1, 1), keys_max=100)
        for n in range(1_000):
            assert meter.admit(f"user:{n}", 1, 0) == 0
            assert len(meter) <= 100

    def test_those_who_have_recovered_are_forgotten_first(self):
        meter = Meter(RateLimit(1, 10), keys_max=100)
        for n in range(90):
            meter.admit(f"idle:{n}", 1, 0)
        for n in range(10):
            meter.admit(f"busy:{n}", 10, 2 * S)
        assert meter.admit("new", 1, 2 * S) == 0
        assert len(meter) == 11
        assert all(meter.admit(f"busy:{n}", 10, 2 * S) == 10_000 for n in range(10))

    def test_then_those_who_are_nearest_to_it(self):
        meter = Meter(RateLimit(1, 100), keys_max=8)
        for n in range(8):
            meter.admit(f"user:{n}", 10 + n, 0)
        assert meter.admit("new", 1, 0) == 0
        assert len(meter) == 8
        assert meter.admit("user:7", 100, 0) == 17_000
        assert meter.admit("user:1", 100, 0) == 11_000
        assert meter.admit("user:0", 100, 0) == 0  # its 10 seconds of debt were the least to lose

    def test_one_key_is_enough(self):
        meter = Meter(RateLimit(1, 1), keys_max=1)
        assert [meter.admit(name, 1, 0) for name in "abc"] == [0, 0, 0]
        assert len(meter) == 1
        with pytest.raises(ValueError, match="keys_max"):
            Meter(RateLimit(1, 1), keys_max=0)


class TestQuotas:
    def test_no_limit_is_the_default(self):
        quotas = Quotas({})
        assert all(quotas.admit(quota, "ann", 1 << 50, 0) == 0 for quota in Quota)

    def test_each_quota_counts_by_itself(self):
        quotas = Quotas({"requests": RateLimit(1, 1), "bytes_in": RateLimit(1_000, 1_000)})
        assert quotas.admit(Quota.REQUESTS, "ann", 1, 0) == 0
        assert quotas.admit(Quota.REQUESTS, "ann", 1, 0) == 1_000
        assert quotas.admit(Quota.BYTES_IN, "ann", 900, 0) == 0
        assert quotas.admit(Quota.BYTES_IN, "ann", 900, 0) == 800
        assert quotas.admit(Quota.BYTES_OUT, "ann", 900, 0) == 0

    def test_a_quota_that_does_not_exist_is_refused(self):
        with pytest.raises(ValueError, match="'request': choose from requests, bytes_in, bytes_out"):
            Quotas({"request": RateLimit(1, 1)})

    @pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf])
    def test_limits_are_numbers_above_zero(self, wrong):
        with pytest.raises(ValueError, match="rate_per_s"):
            RateLimit(wrong, 1)
        with pytest.raises(ValueError, match="burst"):
            RateLimit(1, wrong)
