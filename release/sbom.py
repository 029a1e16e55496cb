"""Software bills of materials in the format CycloneDX 1.6 (JSON). No I/O.

The same input gives the same bytes: the serial number is derived from the content, and the time is that of the commit.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_NAMESPACE: Final = uuid.UUID("6d8a9c8e-0f2f-4f0c-9d0e-6b6f0c1f7a51")
_LOCKED: Final = re.compile(r"^[A-Za-z0-9][^\\#\n]*", re.MULTILINE)
IMAGE_PYTHON: Final = {"python_version": "3.13", "python_full_version": "3.13.0", "sys_platform": "linux"}
"""The environment of the images, for markers of locked requirements."""


@dataclass(frozen=True)
class Component:
    """A part of an artifact.

    Attributes:
        version: the exact version, if it is known.
        requirement: the range of versions that is accepted, if there is one.
        optional: whether the artifact works without it.
    """

    type: str
    name: str
    purl: str
    version: str | None = None
    requirement: str | None = None
    optional: bool = False
    sha256: str | None = None


def python_component(requirement: Requirement) -> Component:
    """Return the component for a requirement of a Python package; it is exact if the requirement has one `==`."""
    name = canonicalize_name(requirement.name)
    pins = [each.version for each in requirement.specifier if each.operator == "=="]
    if pins:
        return Component("library", name, f"pkg:pypi/{name}@{pins[0]}", pins[0])
    return Component("library", name, f"pkg:pypi/{name}", None, str(requirement), requirement.marker is not None)


def locked_components(lock: str, environment: Mapping[str, str] = IMAGE_PYTHON) -> list[Component]:
    """Return the components that a lock file of pip installs in an environment."""
    requirements = [Requirement(line.strip()) for line in _LOCKED.findall(lock)]
    return [
        python_component(requirement)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(dict(environment))
    ]


def bill(subject: Component, parts: Iterable[Component], timestamp: str) -> str:
    """Return the bill of materials of an artifact, as JSON."""
    components = [_entry(part) for part in sorted(parts, key=lambda part: (part.purl, part.requirement or ""))]
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"timestamp": timestamp, "component": _entry(subject)},
        "components": components,
        "dependencies": [
            {"ref": _reference(subject), "dependsOn": sorted({part["bom-ref"] for part in components})},
        ],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(content, sort_keys=True))
    return (
        json.dumps(
            {"$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json"}
            | content
            | {"serialNumber": f"urn:uuid:{serial}"},
            indent=2,
        )
        + "\n"
    )


def _reference(part: Component) -> str:
    # A package can be required by several extras, with different ranges.
    return part.purl if part.requirement is None else f"{part.purl}#{part.requirement}"


def _entry(part: Component) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": part.type, "bom-ref": _reference(part), "name": part.name, "purl": part.purl}
    if part.version is not None:
        entry["version"] = part.version
    if part.optional:
        entry["scope"] = "optional"
    if part.sha256 is not None:
        entry["hashes"] = [{"alg": "SHA-256", "content": part.sha256}]
    if part.requirement is not None:
        entry["properties"] = [{"name": "userrealtime:requirement", "value": part.requirement}]
    return entry
