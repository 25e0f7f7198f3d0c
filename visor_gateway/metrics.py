"""What the gateway counts for Prometheus: one object per daemon with its own registry; no label names an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

#: What was counted, as values that another process understands: name, documentation and type of each family, with its
#: samples: name, labels, value.
Families: TypeAlias = list[Any]

#: What is not of one process, but of the gateway's files.
SHARED = frozenset({"visor_cache_bytes", "visor_store_up"})

SECONDS = (0.01, 0.05, 0.25, 1, 5, 15, 60, 300, 1800, 7200)


class Metrics:
    """All metrics of one daemon. Every one of them is listed in `docs/protocol.md`.

    Attributes:
        catch_up: Called before counters are read, to add what is not counted as it happens. It must not block.
    """

    def __init__(self) -> None:
        self.catch_up: Callable[[], None] = lambda: None
        registry = self.registry = CollectorRegistry()
        self.transfers = Counter(
            "visor_transfers", "Transfers that ended.", ("kind", "store", "outcome"), registry=registry
        )
        self.transfers_active = Gauge(
            "visor_transfers_active", "Transfers under way.", ("kind", "store"), registry=registry
        )
        self.transfers_queued = Gauge("visor_transfers_queued", "Transfers that wait for a slot.", registry=registry)
        self.transfers_refused = Counter(
            "visor_transfers_refused", "Transfers answered 503 at the limit of the queue.", registry=registry
        )
        self.transfer_bytes = Counter(
            "visor_transfer_bytes",
            "Bytes moved, by transfers that ended and by those under way.",
            ("kind", "store"),
            registry=registry,
        )
        self.transfer_seconds = Histogram(
            "visor_transfer_duration_seconds",
            "How long transfers took.",
            ("kind",),
            buckets=SECONDS,
            registry=registry,
        )
        self.retries = Counter(
            "visor_transfer_retries",
            "How often transfers tried a store or origin again.",
            ("kind", "store"),
            registry=registry,
        )
        self.store_up = Gauge(
            "visor_store_up", "Whether a store answered when it was last looked at.", ("store",), registry=registry
        )
        self.store_errors = Counter("visor_store_errors", "Failed calls to a store.", ("store",), registry=registry)
        self.cache_requests = Counter(
            "visor_cache_requests",
            "Pulls that asked the cache, by what they found.",
            ("outcome",),
            registry=registry,
        )
        self.cache_bytes_from_stores = Counter(
            "visor_cache_bytes_from_stores", "Bytes that fills have read from stores.", registry=registry
        )
        self.cache_bytes_to_clients = Counter(
            "visor_cache_bytes_to_clients", "Bytes of pulls that the cache or a fill has served.", registry=registry
        )
        self.cache_evictions = Counter(
            "visor_cache_evictions", "Entries removed to make room for others.", registry=registry
        )
        self.cache_failures = Counter(
            "visor_cache_failures",
            "Pulls that went on from the store because the cache's file had failed.",
            registry=registry,
        )
        self.cache_bytes = Gauge("visor_cache_bytes", "Bytes of the cache's entries.", registry=registry)
        self.scrubbed_images = Counter(
            "visor_scrubbed_images", "Images whose bytes were hashed again.", ("outcome",), registry=registry
        )
        self.connections = Gauge("visor_connections", "Open client connections.", registry=registry)
        self.connections_accepted = Counter(
            "visor_connections_accepted", "Client connections accepted.", registry=registry
        )
        self.connections_refused = Counter(
            "visor_connections_refused", "Connections answered 503 at the limit.", registry=registry
        )
        self.connections_cut = Counter(
            "visor_connections_cut", "Connections ended by us, by cause.", ("cause",), registry=registry
        )
        self.requests = Counter("visor_http_requests", "Answered requests.", ("method", "status"), registry=registry)
        self.request_seconds = Histogram(
            "visor_http_request_duration_seconds",
            "From request head to the end of the answer, without image bytes.",
            ("method",),
            buckets=SECONDS,
            registry=registry,
        )

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        self.catch_up()
        return generate_latest(self.registry)

    def families(self, *, shared: bool = False) -> Families:
        """What was counted, for a `MetricsSum`.

        Args:
            shared: Also what all processes see alike: to be told by one of them.
        """
        self.catch_up()
        return [
            [each.name, each.documentation, each.type, [[s.name, s.labels, s.value] for s in each.samples]]
            for each in self.registry.collect()
            if shared or each.name not in SHARED
        ]


class MetricsSum:
    """What several processes have counted, as if one had. Counters never fall: what an ended process counted stays."""

    def __init__(self) -> None:
        self._counted: dict[str, Families] = {}
        self._ended: dict[str, _Sum] = {}

    def take(self, process: str, families: Families) -> None:
        """Remember what a process has counted so far."""
        self._counted[process] = families

    def drop(self, process: str) -> None:
        """Forget what a process has counted: another sum has it from now on."""
        self._counted.pop(process, None)

    def families(self) -> Families:
        """The sums, for another `MetricsSum`."""
        return [
            [each.name, each.documentation, each.type, [[s.name, s.labels, s.value] for s in each.samples]]
            for each in self.collect()
            if each.name not in SHARED
        ]

    def end(self, process: str) -> None:
        """A process has ended: what it counted stays, what it had of anything is gone."""
        _add(self._ended, [each for each in self._counted.pop(process, []) if each[2] != "gauge"])

    def collect(self) -> Iterator[Metric]:
        """The sums, as Prometheus' collectors give them."""
        sums = {name: family.copy() for name, family in self._ended.items()}
        for families in self._counted.values():
            _add(sums, families)
        for name, family in sums.items():
            metric = Metric(name, family.documentation, family.type)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)


class _Sum:
    """One family of several processes."""

    def __init__(self, documentation: str, type: str) -> None:
        self.documentation = documentation
        self.type = type
        self.samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def copy(self) -> _Sum:
        other = _Sum(self.documentation, self.type)
        other.samples = dict(self.samples)
        return other

    def add(self, name: str, labels: dict[str, str], value: float) -> None:
        key = name, tuple(labels.items())
        if name.endswith("_created"):  # a moment: the earliest counts
            self.samples[key] = min(value, self.samples.get(key, value))
        else:
            self.samples[key] = self.samples.get(key, 0.0) + value


def _add(sums: dict[str, _Sum], families: Families) -> None:
    for name, documentation, type, samples in families:
        family = sums.setdefault(name, _Sum(documentation, type))
        for sample, labels, value in samples:
            family.add(sample, labels, value)
