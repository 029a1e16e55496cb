"""The generated reference has every field, value, variable and metric, with its description in the source."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from userrealtime_core.environment import BROKER_SCHEMES, CREDENTIALS_DIR
from userrealtime_relay.config import Config
from website import reference
from website.sources import ROOT

CHART = ROOT / "charts/userrealtime"


def cells(page: str, name: str) -> list[str]:
    """Return the row of a page's tables that begins with a name."""
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \| (.*) \|$", page, re.MULTILINE)
    return str(row).split(" | ")


def test_every_field_of_the_resource_is_there() -> None:
    page = reference.resource()
    crd = yaml.safe_load((ROOT / "crds/userrealtimes.yaml").read_text())

    def properties(schema: Any, path: str) -> list[str]:
        """Return the paths of all fields, found independently of the page: by every `properties` in the schema."""
        found = []
        for key, value in schema.items() if isinstance(schema, dict) else ():
            if key == "properties":
                for name, child in value.items():
                    found += [f"{path}.{name}", *properties(child, f"{path}.{name}")]
            elif key == "items":
                found += properties(value, f"{path}[]")
        return found

    for version in crd["spec"]["versions"]:
        paths = [path[1:] for path in properties(version["schema"]["openAPIV3Schema"], "")]
        assert "spec.limits.connections" in paths
        for path in paths:
            if path not in ("spec", "status"):
                cells(page, path)
    for message in re.findall(r"message: (\S.*)", (ROOT / "crds/userrealtimes.yaml").read_text()):
        assert message in page or message.startswith("{type"), message


def test_a_field_has_its_type_default_and_meaning() -> None:
    page = reference.resource()
    assert cells(page, "spec.userId")[:2] == ["string, 1 to 253 characters", "required"]
    kind, default, meaning = cells(page, "spec.limits.connections")
    assert (kind, default) == ("integer, 1 to 10000", "`100`")
    assert "Further connections are closed with 1013" in meaning


def leaves(values: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(values, dict) or not values:
        return [(path, values)]
    return [pair for name, value in values.items() for pair in leaves(value, f"{path}.{name}".lstrip("."))]


def test_every_value_of_the_chart_is_there_with_its_default() -> None:
    page = reference.values()
    for path, default in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        rows = [
            row
            for row in page.splitlines()
            if row.startswith("| `") and (path + ".").startswith(row.split("`")[1] + ".")
        ]
        *_, row = rows  # the value itself, or the free-form value that contains it
        name, shown = row.split("`")[1], row.split(" | ")[2]
        if name == path:
            assert shown == reference.code(default), path
        else:
            assert json.dumps(default) in shown, path


def test_a_value_has_the_comment_above_it() -> None:
    kind, default, meaning = cells(reference.values(), "relay.pingInterval")
    assert (kind, default) == ("duration", "`20s`")
    assert meaning.startswith("The interval between pings. A WebSocket")


def test_a_value_that_the_schema_does_not_know_is_told() -> None:
    with pytest.raises(reference.SourceError, match=r"does not know a\.c"):
        list(reference.chart_values("a:\n  c: 1\n", {"properties": {"a": {"properties": {"b": {}}}}}))


def test_every_metric_is_there() -> None:
    page = reference.metrics()
    registries = [
        path.relative_to(ROOT).as_posix()
        for folder in ("operator", "relay", "examples", "cli")
        for path in (ROOT / folder).rglob("*.py")
        if "(MetricsRegistry)" in path.read_text()
    ]
    modules = {path.split("/", 1)[1].removesuffix(".py").replace("/", ".") for path in registries}
    assert modules == set(reference.REGISTRIES.values()), "name the module in reference.REGISTRIES"
    for path in registries:
        for name in re.findall(r"self\._(?:gauge|counter|histogram)\(\s*\"(\w+)\"", (ROOT / path).read_text()):
            assert re.search(rf"^\| `userrealtime_\w+_{name}(_total)?` \|", page, re.MULTILINE), name
    assert cells(page, "userrealtime_relay_closes_total")[:2] == ["counter", "`code`"]
    for process in ("bridge", "operator"):  # both contain an announcer
        assert cells(page, f"userrealtime_{process}_queue_polls_total")[0] == "counter"


def test_every_variable_of_the_relay_is_there_and_meant_as_documented() -> None:
    paths = ("relay/userrealtime_relay/config.py", "core/userrealtime_core/relay_settings.py")
    source = "".join((ROOT / path).read_text() for path in paths)
    known = set(re.findall(r"read\.\w+\(\"([A-Z_]+)\"", source))
    known |= {"TOKEN_KEY", "TOKEN_KEY_PREVIOUS", "TOKEN_KEY_DIR", CREDENTIALS_DIR}
    known |= {f"{broker.upper()}_URL" for broker in BROKER_SCHEMES}
    assert set(reference.variables()) == known == set(reference.described((ROOT / "docs/relay.md").read_text()))
    page = reference.environment()
    for name in known:
        cells(page, name)
    assert "[Signals](../relay.md#signals)" in page


def test_defaults_of_variables_are_those_of_the_relay() -> None:
    config = Config.from_environment({"USER_ID": "a", "DATABASE_URL": "postgresql://a/b", "TOKEN_KEY": "k" * 32})
    for name, (default, _) in reference.described((ROOT / "docs/relay.md").read_text()).items():
        attribute = name.lower().replace("database_idle_after", "idle_after")
        if re.fullmatch(r"[0-9.]+", default):
            assert float(default) == getattr(config, attribute), name
        elif re.fullmatch(r"`.*`|true|false", default):
            value = getattr(config, attribute)
            text = str(value).lower() if isinstance(value, bool) else str(value).removesuffix("()")
            assert default.strip("`") == text, name


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "integer, at least 1"),
        ({"type": "integer", "maximum": 5}, "integer, at most 5"),
        ({"type": "string", "minLength": 1}, "string, not empty"),
        ({"type": "string", "pattern": "^a|b$"}, "string, matching `^a|b$`"),
        ({"anyOf": [{"const": ""}, {"type": "string", "title": "duration"}]}, "empty or duration"),
        ({"enum": ["a", "b"]}, "`a`, `b`"),
        ({"type": "array", "items": {"type": "object"}}, "list of object"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "map of string"),
        ({}, "any"),
    ],
)
def test_constraints_are_said_in_words(schema: dict[str, Any], words: str) -> None:
    assert reference.kind(schema) == words
