import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.latencies import GROWTH, LEAST_S, MOST_S, Latencies


def of(*latencies_s: float) -> Latencies:
    found = Latencies()
    for latency_s in latencies_s:
        found.add(latency_s)
    return found


@given(st.lists(st.floats(LEAST_S, MOST_S), min_size=1, max_size=300), st.floats(0.1, 100))
def test_a_percentile_is_never_less_than_the_value_at_its_rank_and_at_most_one_per_cent_more(latencies_s, percent):
    rank = max(1, -(-len(latencies_s) * percent // 100))
    exact = sorted(latencies_s)[min(len(latencies_s), int(rank)) - 1]
    found = of(*latencies_s).percentile(percent)
    assert exact * (1 - 1e-9) <= found or found == max(latencies_s)
    assert found <= exact * GROWTH * (1 + 1e-9)


def test_nothing_measured_is_zero():
    assert of().percentile(99) == 0.0
    assert of().facts()["count"] == 0


def test_memory_is_bounded_whatever_is_added():
    found = of(*[1e-9 * 1.05**power for power in range(1_000)])
    assert len(found._counts) <= 2_035
    assert found.count == 1_000


def test_what_is_longer_than_the_bound_counts_as_that_long_and_the_longest_is_exact():
    found = of(2 * MOST_S)
    assert found.longest_s == 2 * MOST_S
    assert found.percentile(50) == pytest.approx(MOST_S, rel=0.02)


def test_columns_count_up_to_each_edge():
    assert of(0.001, 0.002, 0.02).columns([0.0021, 0.05, 1.0]) == [(0.0021, 2), (0.05, 3), (1.0, 3)]
