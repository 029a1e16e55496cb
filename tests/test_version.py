"""One version, in every place that has to name it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import yaml

import userrealtime_operator
import userrealtime_relay

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "userrealtime" / "Chart.yaml"


def test_all_places_name_the_same_version() -> None:
    chart = yaml.safe_load(CHART.read_text())
    package = json.loads((ROOT / "clients" / "js" / "package.json").read_text())
    locked = json.loads((ROOT / "clients" / "js" / "package-lock.json").read_text())
    assert {
        userrealtime_operator.__version__,
        userrealtime_relay.__version__,
        version("userrealtime"),
        chart["version"],
        chart["appVersion"],
        package["version"],
        locked["version"],
        locked["packages"][""]["version"],
    } == {userrealtime_operator.__version__}
