"""The Grafana dashboards and the alerts ask for metrics that exist, and every alert has its runbook."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from userrealtime_operator.activator import metrics as activator
from userrealtime_operator.process import metrics as operator
from userrealtime_relay import metrics as relay
from userrealtime_relay.bridge import metrics as bridge
from userrealtime_relay.broadcast_api import metrics as broadcast_api

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "userrealtime"
METRIC = re.compile(r"userrealtime_(?:relay|operator|activator|bridge|broadcast_api)_\w+")


def exposed(expose: Callable[[], bytes]) -> set[str]:
    """Return the names of the metrics in Prometheus, without the process metrics."""
    types = re.findall(r"^# TYPE (userrealtime_\S+) (\S+)$", expose().decode(), re.MULTILINE)
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
    return {name + suffix for name, kind in types for suffix in suffixes[kind] if not name.endswith("_created")}


@pytest.mark.parametrize(
    ("dashboard", "expose"),
    [
        ("relays", relay.Metrics().expose),
        (
            "operator",
            lambda: b"".join(each.Metrics().expose() for each in (operator, bridge, broadcast_api, activator)),
        ),
    ],
)
def test_every_metric_of_the_dashboard_exists_and_none_is_forgotten(
    dashboard: str, expose: Callable[[], bytes]
) -> None:
    panels = json.loads((CHART / "dashboards" / f"{dashboard}.json").read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in METRIC.findall(target["expr"])}
    there = exposed(expose)
    assert asked <= there
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in there}
    assert families == {re.sub("_bucket$", "", name) for name in asked}


RULES = [
    rule for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_asks_for_what_exists_and_has_a_runbook(rule: dict[str, str | dict[str, str]]) -> None:
    assert isinstance(rule["expr"], str)
    asked = set(METRIC.findall(rule["expr"]))
    assert asked
    metrics = (operator.Metrics(), relay.Metrics(), activator.Metrics(), bridge.Metrics())
    assert asked <= set().union(*(exposed(each.expose) for each in metrics))
    annotations = rule["annotations"]
    assert isinstance(annotations, dict)
    base, _, anchor = annotations["runbook_url"].partition("#")
    assert (base, anchor) == ("RUNBOOKS", str(rule["alert"]).lower())


def test_every_runbook_is_that_of_an_alert() -> None:
    sections = re.findall(r"^## (.+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]
