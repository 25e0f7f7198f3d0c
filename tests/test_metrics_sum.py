"""What several processes have counted, as if one had."""

from __future__ import annotations

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from visor_gateway.metrics import Metrics, MetricsSum


def samples(exposition: bytes) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(exposition.decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            if not sample.name.endswith("_created"):
                found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def counted(requests: int, seconds: float) -> Metrics:
    metrics = Metrics()
    metrics.requests.labels("GET", "200").inc(requests)
    metrics.request_seconds.labels("GET").observe(seconds)
    metrics.connections.set(requests)
    metrics.transfers_active.labels("pull", "file").inc(1)
    return metrics


def told(metrics: Metrics, *, shared: bool = False) -> list[object]:
    """As it arrives in another process."""
    families: list[object] = msgspec.msgpack.decode(msgspec.msgpack.encode(metrics.families(shared=shared)))
    return families


def test_the_sum_of_one_is_what_it_counted() -> None:
    one = counted(3, 0.2)
    sums = MetricsSum()
    sums.take("one", told(one, shared=True))
    assert samples(sums.exposition()) == samples(one.exposition())


def test_counters_gauges_and_histograms_add_up_and_the_last_word_of_a_process_counts() -> None:
    sums = MetricsSum()
    sums.take("one", told(counted(1, 100)))
    sums.take("one", told(counted(3, 0.2)))
    sums.take("two", told(counted(4, 2)))
    found = samples(sums.exposition())
    assert found["visor_http_requests_total{method=GET,status=200}"] == 7
    assert found["visor_connections{}"] == 7
    assert found["visor_http_request_duration_seconds_count{method=GET}"] == 2
    assert found["visor_http_request_duration_seconds_bucket{le=1.0,method=GET}"] == 1
    assert found["visor_http_request_duration_seconds_bucket{le=+Inf,method=GET}"] == 2
    assert found["visor_transfers_active{kind=pull,store=file}"] == 2


def test_what_an_ended_process_counted_stays_and_what_it_had_is_gone() -> None:
    sums = MetricsSum()
    for name in ("one", "two", "three"):
        sums.take(name, told(counted(2, 0.2)))
    sums.end("one")
    sums.end("two")
    sums.end("unknown")
    for _ in range(2):  # to ask changes nothing
        found = samples(sums.exposition())
        assert found["visor_http_requests_total{method=GET,status=200}"] == 6
        assert found["visor_http_request_duration_seconds_count{method=GET}"] == 3
        assert found["visor_connections{}"] == 2
        assert found["visor_transfers_active{kind=pull,store=file}"] == 1


def test_what_all_processes_see_alike_is_told_by_one() -> None:
    one, two = Metrics(), Metrics()
    for metrics in (one, two):
        metrics.cache_bytes.set(1000)
    sums = MetricsSum()
    sums.take("one", told(one))
    sums.take("two", told(two, shared=True))
    assert samples(sums.exposition())["visor_cache_bytes{}"] == 1000
