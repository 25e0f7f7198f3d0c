"""The monitoring files ask for metrics that there are, with the labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from visor_gateway.metrics import Metrics

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
#: What Prometheus itself adds.
EVERYWHERE = {"job", "instance", "le"}
SELECTOR = re.compile(r"(visor_\w+)(?:\{([^}]*)\})?")


def known() -> dict[str, set[str]]:
    """Every series that is exposed, with the names of its labels."""
    registry = Metrics().registry
    assert isinstance(registry, CollectorRegistry)
    series = {}
    for collector in list(registry._collector_to_names):
        if isinstance(collector, MetricWrapperBase):
            for name in registry._collector_to_names[collector]:
                series[name] = set(collector._labelnames)
    return series


def expressions() -> Iterator[str]:
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    text = (MONITORING / "alerts.yml").read_text()
    found = re.findall(r"expr: (\|\n(?: {10}.*\n)+|.+\n)", text)
    assert len(found) == text.count("- alert:")
    yield from found


def test_every_expression_asks_for_what_is_exposed() -> None:
    series = known()
    asked: set[str] = set()
    for expression in expressions():
        for name, selector in SELECTOR.findall(expression):
            assert name in series, f"{name} in {expression}"
            labels = set(re.findall(r"(\w+)\s*=", selector))
            labels |= set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression))))
            assert labels <= series[name] | EVERYWHERE, f"{labels} in {expression}"
            asked.add(name)
    assert len(asked) > 15


def test_panels_do_not_overlap() -> None:
    panels: list[dict[str, Any]] = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(x < 24 for x, _ in cells)
