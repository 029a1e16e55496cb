"""The README of the chart."""

from __future__ import annotations

import json
from typing import Final

import yaml

from release.build import ROOT
from release.project import Project
from release.readme import chart_readme
from website.reference import chart_values, code, followed, values

PROJECT: Final = Project("Example-Org", "userrealtime")
CHART: Final = ROOT / "charts" / "userrealtime"


def readme() -> str:
    return chart_readme(PROJECT, "1.2.3", yaml.safe_load((CHART / "Chart.yaml").read_text()), values(CHART))


def test_it_names_the_chart_in_the_registry() -> None:
    page = readme()
    assert "helm install userrealtime oci://ghcr.io/example-org/charts/userrealtime --version 1.2.3 \\\n" in page
    assert "--set 'route.url=https://realtime.example.com/{name}'" in page
    assert "cosign verify ghcr.io/example-org/charts/userrealtime:1.2.3 \\\n" in page


def test_it_describes_each_value_with_its_default() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    lines = readme().splitlines()
    for value in chart_values((CHART / "values.yaml").read_text(), followed(schema, schema["$defs"])):
        if value.leaf and "." in value.path:
            [line] = [line for line in lines if line.startswith(f"| {code(value.path)} |")]
            assert f"| {code(value.default)} |" in line


def test_it_has_one_heading_of_the_first_level() -> None:
    assert [line for line in readme().splitlines() if line.startswith("# ")] == ["# userrealtime"]
