"""What is counted, and that the number of series has an end."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.observe.metrics import OTHER, SERIES_MAX, Metrics


def samples(metrics: Metrics) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        sample.name + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_counters_gauges_and_histograms_are_rendered() -> None:
    metrics = Metrics()
    metrics.requests_total.labels("rest", "publish", "ok").inc()
    metrics.requests_total.labels(outcome="ok", protocol="rest", operation="publish").inc(2)
    metrics.connections.labels("http").inc()
    metrics.request_seconds.labels("rest", "publish").observe(0.003)
    metrics.event_loop_lag_seconds.observe(0.02)
    found = samples(metrics)
    assert found["sprawl_requests_total,operation=publish,outcome=ok,protocol=rest"] == 3
    assert found["sprawl_connections,protocol=http"] == 1
    assert found["sprawl_request_seconds_bucket,le=0.005,operation=publish,protocol=rest"] == 1
    assert found["sprawl_event_loop_lag_seconds_count"] == 1
    assert found["process_resident_memory_bytes"] > 1_000_000


@pytest.mark.parametrize(
    "name",
    ["records_in_total", "bytes_in_total", "records_out_total", "bytes_out_total", "subscriptions", "slow_readers_total"],
)
def test_each_protocol_has_its_own(name: str) -> None:
    metrics = Metrics()
    getattr(metrics, name).labels("rest").inc(2)
    getattr(metrics, name).labels("websocket").inc()
    found = samples(metrics)
    assert (found[f"sprawl_{name},protocol=rest"], found[f"sprawl_{name},protocol=websocket"]) == (2, 1)


def test_labels_that_run_wild_become_one_series() -> None:
    metrics = Metrics()
    for number in range(SERIES_MAX + 500):
        metrics.refused_total.labels("rest", f"reason-{number}").inc()
    found = {name: value for name, value in samples(metrics).items() if name.startswith("sprawl_refused_total")}
    assert len(found) == SERIES_MAX + 1
    assert found[f"sprawl_refused_total,protocol={OTHER},reason={OTHER}"] == 500


def test_no_label_can_hold_what_users_choose() -> None:
    labels = {
        label
        for family in text_string_to_metric_families(_used().render().decode())
        for sample in family.samples
        for label in sample.labels
    }
    assert labels == {"protocol", "operation", "outcome", "reason", "le"}


def _used() -> Metrics:
    metrics = Metrics()
    metrics.requests_total.labels("rest", "publish", "ok").inc()
    metrics.request_seconds.labels("rest", "publish").observe(1)
    metrics.refused_total.labels("http", "head-timeout").inc()
    metrics.certificate_reloads_total.labels("swapped").inc()
    for family in (metrics.connections, metrics.subscriptions, metrics.records_in_total, metrics.bytes_out_total):
        family.labels("rest").inc()
    return metrics


class Inner(msgspec.Struct):
    hits: int


class Stats(msgspec.Struct):
    topics: int
    healthy: bool
    name: str
    cache: Inner
    ranges: list[int]


class TestPulledFigures:
    def test_are_taken_at_each_scrape(self) -> None:
        metrics, stats = Metrics(), Stats(3, True, "x", Inner(7), [1, 2])
        metrics.pull("engine", lambda: stats)
        metrics.pull("tokens", lambda: {"count": 2})
        found = samples(metrics)
        assert {name: value for name, value in found.items() if name.startswith("sprawl_engine")} == {
            "sprawl_engine_topics": 3,
            "sprawl_engine_healthy": 1,
            "sprawl_engine_cache_hits": 7,
        }
        assert found["sprawl_tokens_count"] == 2
        stats.topics = 4
        assert samples(metrics)["sprawl_engine_topics"] == 4

    def test_that_fail_are_left_out_and_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        metrics = Metrics()
        metrics.pull("engine", lambda: 1 / 0)
        metrics.pull("tokens", lambda: {"count": 2})
        assert samples(metrics)["sprawl_tokens_count"] == 2
        assert "no figures of engine" in caplog.text


def test_two_nodes_of_one_process_share_nothing() -> None:
    one, other = Metrics(), Metrics()
    one.connections.labels("http").inc()
    assert "sprawl_connections,protocol=http" not in samples(other)
