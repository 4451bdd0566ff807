"""What the node counts, in Prometheus' text format. Counters are kept here; the engine's figures are pulled at each scrape.

No label ever holds a topic, key, principal or peer: their number is not ours to bound. Labels are protocols, operations, outcomes
and reasons, words of our own code, and each family still has a bound (`SERIES_MAX`): beyond it values become `other`.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from math import inf
from typing import Any, Generic, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SERIES_MAX = 200
OTHER = "other"
NAMESPACE = "sprawl"

# 0.5 ms is a durable publish on a good disk, 60 s the longest long-poll.
REQUEST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

# A second series for each counter and histogram, to tell when it began: the process start time says as much.
disable_created_metrics()  # type: ignore[no-untyped-call]

logger = logging.getLogger(__name__)


class Tally:
    """A counter's child. Counting is one addition: prometheus-client's takes a lock and three calls, 0.9 us of each request."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class Level:
    """A gauge's child."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount

    def dec(self, amount: float = 1) -> None:
        self.value -= amount

    def set(self, value: float) -> None:
        self.value = value


class Spread:
    """A histogram's child: how many values fell below each bound, above the one before."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(REQUEST_SECONDS) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(REQUEST_SECONDS, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound, as text, and how many are not above it."""
        bounds = ["+Inf" if bound == inf else str(bound) for bound in (*REQUEST_SECONDS, inf)]
        return list(zip(bounds, accumulate(self.counts), strict=True))


Child = TypeVar("Child", Tally, Level, Spread)


class Family(Generic[Child]):
    """A metric with labels. Asking `labels` for a child again is one dictionary look-up.

    Children are changed on the event loop's thread, or by single additions, which the interpreter does not take apart.
    """

    __slots__ = ("_children", "_kind", "name", "names", "text")

    def __init__(self, kind: type[Child], name: str, text: str, names: tuple[str, ...]) -> None:
        self.name = f"{NAMESPACE}_{name}"
        self.text = text
        self._kind: type[Child] = kind
        self.names = names
        self._children: dict[tuple[str, ...], Child] = {}

    def labels(self, *values: str, **named: str) -> Child:
        """By position or by name, as prometheus-client takes them."""
        key = values if values else tuple(named[name] for name in self.names)
        child = self._children.get(key)
        return self._new_child(key) if child is None else child

    def _new_child(self, key: tuple[str, ...]) -> Child:
        if len(key) != len(self.names):
            raise ValueError(f"{self.name} has the labels {', '.join(self.names)}, not {len(key)} values")
        if len(self._children) >= SERIES_MAX:
            key = (OTHER,) * len(self.names)
        return self._children.setdefault(key, self._kind())

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        children = list(self._children.items())
        if self._kind is Spread:
            histogram = HistogramMetricFamily(self.name, self.text, labels=self.names)
            for key, child in children:
                assert isinstance(child, Spread)
                histogram.add_metric(key, child.buckets(), child.sum)
            yield histogram
            return
        family = CounterMetricFamily if self._kind is Tally else GaugeMetricFamily
        single = family(self.name, self.text, labels=self.names)
        for key, child in children:
            assert not isinstance(child, Spread)
            single.add_metric(key, child.value)
        yield single


class Metrics:
    """Everything that is counted, as attributes. One per node: two nodes of one process share nothing."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._pulled: list[tuple[str, Callable[[], Any]]] = []
        self.requests_total = self._counter("requests", "Operations by outcome", "protocol", "operation", "outcome")
        self.request_seconds = self._histogram("request_seconds", "Time an operation took", "protocol", "operation")
        self.records_in_total = self._counter("records_in", "Records accepted", "protocol")
        self.bytes_in_total = self._counter("bytes_in", "Bytes of keys, values and headers accepted", "protocol")
        self.records_out_total = self._counter("records_out", "Records delivered", "protocol")
        self.bytes_out_total = self._counter("bytes_out", "Bytes of keys, values and headers delivered", "protocol")
        self.refused_total = self._counter("refused", "Connections and requests refused", "protocol", "reason")
        self.logins_throttled_total = self._counter(
            "logins_throttled", "Log-ins delayed or refused since many had failed", "protocol", "outcome"
        )
        self.connections = self._gauge("connections", "Open connections", "protocol")
        self.subscriptions = self._gauge("subscriptions", "Open subscriptions", "protocol")
        self.slow_readers_total = self._counter("slow_readers", "Times a reader was too slow and delivery paused", "protocol")
        self.certificate_reloads_total = self._counter("certificate_reloads", "Changed certificate files", "outcome")
        self.certificate_expiry_seconds = Gauge(
            "certificate_expiry_seconds",
            "Unix time at which the certificate in use expires",
            namespace=NAMESPACE,
            registry=self.registry,
        )
        self.event_loop_lag_seconds = Histogram(
            "event_loop_lag_seconds",
            "How late the event loop ran a timer",
            namespace=NAMESPACE,
            buckets=LAG_SECONDS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)  # process_resident_memory_bytes, CPU seconds, open files
        self.registry.register(_Pulled(self._pulled))

    def pull(self, prefix: str, snapshot: Callable[[], Any]) -> None:
        """At each scrape, a gauge `sprawl_<prefix>_<field>` for each number in the struct or mapping that `snapshot` returns."""
        self._pulled.append((prefix, snapshot))

    def render(self) -> bytes:
        """The body of `/metrics`; its type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Family[Tally]:
        return self._registered(Family(Tally, name, text, labels))

    def _gauge(self, name: str, text: str, *labels: str) -> Family[Level]:
        return self._registered(Family(Level, name, text, labels))

    def _histogram(self, name: str, text: str, *labels: str) -> Family[Spread]:
        return self._registered(Family(Spread, name, text, labels))

    def _registered(self, family: Family[Child]) -> Family[Child]:
        self.registry.register(family)
        return family


class _Pulled:
    """Collects the snapshots; one that fails is left out and logged, the rest of the scrape goes on."""

    def __init__(self, sources: list[tuple[str, Callable[[], Any]]]) -> None:
        self._sources = sources

    def collect(self) -> Iterable[Metric]:
        for prefix, snapshot in self._sources:
            try:
                numbers = _numbers(snapshot())
            except Exception:
                logger.exception("no figures of %s in this scrape", prefix)
                continue
            for name, value in numbers:
                yield GaugeMetricFamily(f"{NAMESPACE}_{prefix}_{name}", f"{prefix}: {name.replace('_', ' ')}", value=value)


def _numbers(snapshot: Any, prefix: str = "") -> list[tuple[str, float]]:
    """Numbers of a struct or mapping by name, those of inner ones as `<name>_<inner>`. Lists are left out: they have no bound."""
    fields = msgspec.structs.asdict(snapshot) if isinstance(snapshot, msgspec.Struct) else dict(snapshot)
    found: list[tuple[str, float]] = []
    for name, value in fields.items():
        if isinstance(value, bool | int | float):
            found.append((f"{prefix}{name}", float(value)))
        elif isinstance(value, msgspec.Struct | dict):
            found += _numbers(value, f"{prefix}{name}_")
    return found
