"""One version, in every place that has to name it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import yaml

import userrealtime_operator
import userrealtime_relay

CHART = Path(__file__).parents[1] / "charts" / "userrealtime" / "Chart.yaml"


def test_all_places_name_the_same_version() -> None:
    chart = yaml.safe_load(CHART.read_text())
    assert {
        userrealtime_operator.__version__,
        userrealtime_relay.__version__,
        version("userrealtime"),
        chart["version"],
        chart["appVersion"],
    } == {userrealtime_operator.__version__}
