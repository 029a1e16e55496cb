"""The Grafana dashboard asks for metrics that the relay has."""

from __future__ import annotations

import json
import re
from pathlib import Path

from userrealtime_relay.metrics import Metrics

DASHBOARD = Path(__file__).parents[1] / "charts" / "userrealtime" / "dashboards" / "relays.json"
METRIC = re.compile(r"userrealtime_relay_\w+")


def exposed() -> set[str]:
    """The metrics of a relay, by the names that Prometheus stores them under."""
    types = re.findall(r"^# TYPE (\S+) (\S+)$", Metrics().expose().decode(), re.MULTILINE)
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
    return {name + suffix for name, kind in types for suffix in suffixes[kind] if not name.endswith("_created")}


def test_every_metric_of_the_dashboard_exists_and_none_is_forgotten() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in METRIC.findall(target["expr"])}
    assert asked <= exposed()
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in exposed()}
    assert families == {re.sub("_bucket$", "", name) for name in asked}
