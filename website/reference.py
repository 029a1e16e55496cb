"""The reference pages, generated from the sources of what they describe. No I/O except reading these."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import yaml

from userrealtime_core import announcer
from userrealtime_core.environment import ConfigError
from userrealtime_core.relay_settings import SIGNALS
from userrealtime_relay.config import Config
from website.sources import ROOT

Json = dict[str, Any]

# Modules with a class `Metrics`, by the process that has the metrics.
REGISTRIES: Final = {
    "The relay": "userrealtime_relay.metrics",
    "The bridge": "userrealtime_relay.bridge.metrics",
    "The broadcast API": "userrealtime_relay.broadcast_api.metrics",
    "The operator": "userrealtime_operator.process.metrics",
    "The activator": "userrealtime_operator.activator.metrics",
}
_WRONG: Final = "\x01"


class SourceError(ValueError):
    """A source contains an element that its reference cannot describe. The message names the element."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. Each cell is one line of Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)]) + "\n"


def code(value: object) -> str:
    """Return a value as code in the form of YAML on one line, empty without a value."""
    if value is None:
        return ""
    return f"`{value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)}`"


def prose(text: str) -> str:
    """Return a text of a source as one line of Markdown."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "&#124;")


# --- constraints, as JSON Schema and OpenAPI have them


def kind(schema: Json) -> str:
    """Return a description of the permitted values."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(each) for each in schema["anyOf"]))
    if "const" in schema:
        return "empty" if schema["const"] == "" else code(schema["const"])
    if "enum" in schema:
        return ", ".join("empty" if each == "" else code(each) for each in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    name = str(schema.get("type", "any"))
    if name == "string" and "title" in schema:
        return str(schema["title"])
    if name == "array":
        return f"list of {kind(schema.get('items', {'type': 'any'}))}"
    if name == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of {kind(schema['additionalProperties'])}"
    return name + _bounds(schema)


def _bounds(schema: Json) -> str:
    words = []
    for low, high, unit in (("minimum", "maximum", ""), ("minLength", "maxLength", " characters")):
        match schema.get(low), schema.get(high):
            case (None, None):
                continue
            case (1, None) if unit:
                words.append("not empty")
            case (least, None):
                words.append(f"at least {least}{unit}")
            case (None, most):
                words.append(f"at most {most}{unit}")
            case (least, most):
                words.append(f"{least} to {most}{unit}")
    if "format" in schema:
        words.append(schema["format"])
    if "pattern" in schema:
        words.append(f"matching {code(schema['pattern'])}")
    return f", {', '.join(words)}" if words else ""


# --- the resource


def fields(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Yield all fields below a schema, each with its path, such as `spec.relay.image` or `status.conditions[].type`."""
    for name, child in schema.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        yield here, {**child, "x-required": True} if name in schema.get("required", ()) else child
        items = child.get("items", {})
        yield from fields(items if "properties" in items else child, f"{here}[]" if "properties" in items else here)


def resource() -> str:
    """Return the page of the CRD: every field of every version, and the rules with their messages."""
    crd = yaml.safe_load((ROOT / "crds/userrealtimes.yaml").read_text())
    names, parts = crd["spec"]["names"], []
    for version in crd["spec"]["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        found = [(path, child) for path, child in fields(schema) if path not in ("spec", "status")]
        columns = [(c["name"], code(c["jsonPath"])) for c in version.get("additionalPrinterColumns", [])]
        parts.append(f"""\
# {names["kind"]}

`{crd["spec"]["group"]}/{version["name"]}`, {crd["spec"]["scope"].lower()}; for `kubectl`: {code(names["plural"])}, \
{", ".join(map(code, names["shortNames"]))}. {prose(schema["description"])}

## spec

{_field_table(found, "spec.")}
## status

{_field_table(found, "status.")}
## Columns of `kubectl get`

{table(("column", "of"), columns)}""")
    return "\n".join(parts)


def _field_table(found: Iterable[tuple[str, Json]], prefix: str) -> str:
    return table(
        ("field", "type", "default", "meaning"),
        (
            (
                code(path),
                kind(child),
                "required" if "x-required" in child else code(child.get("default")),
                _meaning(child),
            )
            for path, child in found
            if path.startswith(prefix)
        ),
    )


def _meaning(schema: Json) -> str:
    rules = [f"Rejected otherwise: “{prose(rule['message'])}”." for rule in schema.get("x-kubernetes-validations", [])]
    return " ".join([prose(schema.get("description", "")), *rules]).strip()


# --- the chart's values


@dataclass(frozen=True, slots=True)
class Value:
    """One of the chart's values: its path, its default, the comment above it, and its schema."""

    path: str
    default: object
    comment: str
    schema: Json
    leaf: bool


def chart_values(text: str, schema: Json) -> Iterator[Value]:
    """Yield all values of a values.yaml that its schema defines by name, in their order, including objects.

    Raises:
        SourceError: the schema does not define a value.
    """
    yield from _values(yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text), schema, text.splitlines(), "")


def _values(node: Any, data: Json, schema: Json, lines: list[str], prefix: str) -> Iterator[Value]:
    for key, child in node.value:
        path, value = f"{prefix}{key.value}", data[key.value]
        says = schema.get("properties", {}).get(key.value)
        if says is None:
            raise SourceError(f"values.schema.json does not know {path}")
        leaf = not value or "properties" not in says
        yield Value(path, value, _comment_above(lines, key.start_mark), says, leaf)
        if not leaf:
            yield from _values(child, value, says, lines, f"{path}.")


def _comment_above(lines: list[str], mark: Any) -> str:
    start = mark.line
    while start and re.match(rf" {{{mark.column}}}#", lines[start - 1]):
        start -= 1
    return " ".join(line.strip().lstrip("#").strip() for line in lines[start : mark.line])


def followed(here: Any, definitions: Json) -> Any:
    """Return a JSON schema with its references replaced by their targets."""
    if isinstance(here, list):
        return [followed(each, definitions) for each in here]
    if not isinstance(here, dict):
        return here
    if "$ref" in here:
        name = here["$ref"].rpartition("/")[2]
        return {"title": name, **followed(definitions[name], definitions)}
    return {name: followed(each, definitions) for name, each in here.items()}


def values(chart: Path = ROOT / "charts/userrealtime") -> str:
    """Return the page of the chart's values."""
    schema = json.loads((chart / "values.schema.json").read_text())
    schema = followed(schema, schema["$defs"])
    parts = ["# The chart's values\n\nFrom the chart's `values.yaml`, with the types of its `values.schema.json`.\n"]
    rows: list[Sequence[str]] = []
    heading = ""

    def flush() -> None:
        if rows:
            parts.append(f"{heading}{table(('value', 'type', 'default', 'meaning'), rows)}")
        rows.clear()

    for value in chart_values((chart / "values.yaml").read_text(), schema):
        if "." not in value.path:
            flush()
            heading = f"## {value.path}\n\n"
            if not value.leaf:
                heading += f"{prose(value.comment)}\n\n" if value.comment else ""
                continue
        if not value.leaf:
            if value.comment:
                rows.append((code(value.path), "", "", prose(value.comment)))
            continue
        rows.append((code(value.path), kind(value.schema), code(value.default), prose(value.comment)))
    flush()
    return "\n".join(parts)


# --- metrics


def families(module: str) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Yield each metric of a module's registry: name on the metrics page, type, labels, meaning."""
    return _families(import_module(module).Metrics())


def _families(metrics: object) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    for metric in vars(metrics).values():
        if isinstance(metric, announcer.Metrics):
            yield from _families(metric)
            continue
        labels: tuple[str, ...] | None = getattr(metric, "_labelnames", None)
        if labels is None:  # the registry itself
            continue
        (family,) = metric.describe()
        yield family.name + ("_total" if family.type == "counter" else ""), family.type, labels, family.documentation


def metrics() -> str:
    """Return the page of all metrics."""
    parts = ["# Metrics\n\nServed at `/metrics`, for Prometheus. No label contains data of a user or a client.\n"]
    for whose, module in REGISTRIES.items():
        rows = (
            (code(name), sort, ", ".join(map(code, labels)), prose(text))
            for name, sort, labels, text in families(module)
        )
        parts.append(f"## {whose}\n\n{table(('metric', 'type', 'labels', 'meaning'), rows)}")
    return "\n".join(parts)


# --- the relay's environment


class _Recorder(Mapping[str, str]):
    """An environment in which every variable except SIGNAL is invalid, and which records the names that are read."""

    def __init__(self, signal: str) -> None:
        self._signal = signal
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> str:
        self.names[name] = None
        return self._signal if name == "SIGNAL" else _WRONG

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def variables() -> dict[str, str]:
    """Return the relay's variables, each with its permitted values from the relay's error message."""
    names: set[str] = set()
    said: dict[str, str] = {}
    for signal in (*SIGNALS, _WRONG):  # it determines which other variables are read
        recorder = _Recorder(signal)
        try:
            Config.from_environment(recorder)
        except ConfigError as error:
            said |= dict(re.findall(r"^  ([A-Z_]+): (.+)$", str(error), re.MULTILINE))
        names |= recorder.names.keys()
    accepted = {}
    for name in sorted(names):
        words = re.sub(r"^'.*?' is not |^must be |^either ", "", said.get(name, "text"))
        accepted[name] = re.sub(r" \(its value is not shown here\)|, or empty$|: \[Errno.*$", "", words)
    return accepted


def described(page: str) -> dict[str, tuple[str, str]]:
    """Return the default and the meaning of each variable of the relay, from the table of docs/relay.md."""
    found: dict[str, tuple[str, str]] = {}
    for cells in re.findall(r"^\| (`[A-Z_`, ]+`) \| *(.*?) *\| (.*) \|$", page, re.MULTILINE):
        names = re.findall(r"[A-Z_]+", cells[0])
        defaults = cells[1].split(", ") if cells[1].count(", ") == len(names) - 1 else [cells[1]] * len(names)
        found |= {name: (default, cells[2]) for name, default in zip(names, defaults, strict=True)}
    return found


def environment() -> str:
    """Return the page of the relay's environment.

    Raises:
        SourceError: docs/relay.md does not describe a variable.
    """
    meanings = described((ROOT / "docs/relay.md").read_text())
    accepted = variables()
    if unknown := accepted.keys() - meanings.keys():
        raise SourceError(f"docs/relay.md, Environment, says nothing of {', '.join(sorted(unknown))}")
    rows = ((code(name), prose(accepts), *map(_from_relay, meanings[name])) for name, accepts in accepted.items())
    return (
        "# The relay's environment\n\nThe operator sets these from the [resource](resource.md) and the "
        f"[chart's values](values.md).\n\n{table(('variable', 'accepts', 'default', 'meaning'), rows)}"
    )


def _from_relay(text: str) -> str:
    """Return a cell of docs/relay.md with its links relative to the reference."""
    text = re.sub(r"\]\((?=#)", "](relay.md", text)
    return re.sub(r"\]\((?![a-z]+:)", "](../", text)


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "reference/resource.md": resource,
    "reference/values.md": values,
    "reference/environment.md": environment,
    "reference/metrics.md": metrics,
}
