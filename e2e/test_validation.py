"""Every field of the CRD rejects invalid values with a message that contains the field.

The bad values are made from the schema itself, and cover every field; rules in CEL each have theirs here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from testing.cluster import ClusterError
from testing.system import ROOT, System

SPEC = yaml.safe_load((ROOT / "crds" / "userrealtimes.yaml").read_text())["spec"]["versions"][0]["schema"][
    "openAPIV3Schema"
]["properties"]["spec"]
WRONG_TYPE = {"object": "text", "array": "text", "string": 7, "integer": "text", "boolean": "text"}
# By the beginning of a rule's message: a spec that breaks it.
BROKEN_RULES: dict[str, dict[str, Any]] = {
    "userId must not contain control characters": {"userId": "a\nb"},
    "idle.after must be a duration": {"idle": {"after": "10 minutes"}},
    "idle.parkAfter must be a duration": {"idle": {"parkAfter": "10 minutes"}},
    "url must be http(s)://host[:port][/path]": {"route": {"url": "nowhere"}},
}
# A rule about a change, see test_resource.py.
TRANSITION_RULES = ("userId is immutable",)


def bad_values(schema: dict[str, Any]) -> Iterator[Any]:
    """Return the values that the schema of one field must reject."""
    if "type" in schema:
        yield WRONG_TYPE[schema["type"]]
    if schema.get("x-kubernetes-int-or-string"):
        yield True
    if schema.get("minLength"):
        yield ""
    if "maxLength" in schema:
        yield "x" * (schema["maxLength"] + 1)
    if "minimum" in schema:
        yield schema["minimum"] - 1
    if "maximum" in schema:
        yield schema["maximum"] + 1
    if "enum" in schema:
        yield "neither"
    if "pattern" in schema:
        yield "a lot"


def bad_fields(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the paths and invalid values of all fields below `schema` except list items. A map has the key `memory`."""
    for value in bad_values(schema):
        yield path, value
    for name, field in schema.get("properties", {}).items():
        yield from bad_fields(field, (*path, name))
    if isinstance(values := schema.get("additionalProperties"), dict):
        yield from bad_fields(values, (*path, "memory"))


def rules(schema: dict[str, Any]) -> Iterator[str]:
    """Return the messages of all rules below `schema`."""
    yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
    for field in schema.get("properties", {}).values():
        yield from rules(field)


def resource(spec: Any) -> str:
    head = {"apiVersion": "userrealtime.dev/v1alpha1", "kind": "UserRealtime", "metadata": {"name": "never-made"}}
    return json.dumps({**head, "spec": spec})


def create(system: System, spec: Any, *options: str) -> str:
    """Return the response to a server-side dry run of a creation."""
    return system.kubectl("create", "--dry-run=server", *options, "-f", "-", input=resource(spec))


@pytest.mark.parametrize(
    ("path", "value"), list(bad_fields(SPEC)), ids=lambda part: ".".join(part) if isinstance(part, tuple) else ""
)
def test_a_bad_value_is_refused_and_its_field_named(system: System, path: tuple[str, ...], value: Any) -> None:
    field: Any = value
    for name in reversed(path):
        field = {name: field}
    spec = {"userId": "somebody", **field} if path else field
    with pytest.raises(ClusterError, match=re.escape(".".join(("spec", *path))) + ": (Invalid|Too long|Unsupported)"):
        create(system, spec)


def test_a_resource_needs_a_user(system: System) -> None:
    for spec in ({}, {"userId": None}, {"limits": {"connections": 7}}):
        with pytest.raises(ClusterError, match=r"spec\.userId: Required"):
            create(system, spec)


@pytest.mark.parametrize("message", [text for text in rules(SPEC) if not text.startswith(TRANSITION_RULES)])
def test_a_broken_rule_is_told(system: System, message: str) -> None:
    [broken] = [spec for beginning, spec in BROKEN_RULES.items() if message.startswith(beginning)]
    with pytest.raises(ClusterError, match=re.escape(message)):
        create(system, {"userId": "somebody", **broken})


def test_unknown_fields_are_rejected_or_dropped(system: System) -> None:
    spec = {"userId": "somebody", "limits": {"conections": 7}}
    for options in ((), ("--validate=strict",)):  # the one is kubectl's default for the other
        with pytest.raises(ClusterError, match=r'unknown field "spec\.limits\.conections"'):
            create(system, spec, *options)
    stored = json.loads(create(system, spec, "--validate=ignore", "-o", "json"))
    assert "conections" not in stored["spec"]["limits"]
    assert stored["spec"]["limits"]["connections"] == 100
