"""Bills of materials."""

from __future__ import annotations

import json
from typing import Any, Final

from packaging.requirements import Requirement

from release.build import ROOT, image_component, peers
from release.project import IMAGES, Project
from release.sbom import Component, bill, locked_components, python_component

SUBJECT: Final = Component("library", "userrealtime", "pkg:pypi/userrealtime@1.2.3", "1.2.3", sha256="0" * 64)
LOCK: Final = """\
a-package==1.0 \\
    --hash=sha256:00
windows-only==2.0 ; sys_platform == 'win32' \\
    --hash=sha256:00
linux-only==3.0 ; sys_platform == 'linux' \\
    --hash=sha256:00
"""
TIME: Final = "2026-12-01T00:00:00Z"


def parsed(*parts: Component) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(bill(SUBJECT, parts, TIME))
    return result


def test_a_lock_has_the_components_of_the_image() -> None:
    found = locked_components(LOCK)
    assert [(part.name, part.version) for part in found] == [("a-package", "1.0"), ("linux-only", "3.0")]


def test_the_locks_of_the_images() -> None:
    for image in IMAGES:
        text = (ROOT / "locks" / f"{image}.txt").read_text()
        found = locked_components(text)
        assert found
        assert all(part.version for part in found)
        assert len(found) <= text.count("==")


def test_a_bill() -> None:
    pinned = python_component(Requirement("Some_Package==1.0"))
    ranged = python_component(Requirement("aiohttp>=3,<4; extra == 'client'"))
    found = parsed(ranged, pinned)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert found["metadata"]["timestamp"] == TIME
    assert found["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": "0" * 64}]
    first, second = found["components"]
    assert (first["name"], first["scope"]) == ("aiohttp", "optional")
    assert "version" not in first
    assert first["properties"][0]["value"] == 'aiohttp<4,>=3; extra == "client"'
    assert (second["purl"], second["version"]) == ("pkg:pypi/some-package@1.0", "1.0")
    references = [part["bom-ref"] for part in found["components"]]
    assert found["dependencies"] == [{"ref": SUBJECT.purl, "dependsOn": references}]
    assert len({*references, SUBJECT.purl}) == 3


def test_the_same_content_gives_the_same_bytes() -> None:
    parts = locked_components(LOCK)
    assert bill(SUBJECT, parts, TIME) == bill(SUBJECT, reversed(parts), TIME)
    assert parsed(*parts)["serialNumber"] != parsed(parts[0])["serialNumber"]


def test_an_image_has_its_digest_if_it_is_known() -> None:
    project = Project("owner", "userrealtime")
    assert image_component(project, "relay", "1.2.3", {}).purl == "pkg:oci/userrealtime-relay@1.2.3"
    purl = image_component(project, "relay", "1.2.3", {"relay": "sha256:ab"}).purl
    assert purl.startswith("pkg:oci/userrealtime-relay@sha256%3Aab?repository_url=ghcr.io/owner/userrealtime-relay")


def test_peer_dependencies_are_optional() -> None:
    package = {
        "dependencies": {"a": "^1"},
        "peerDependencies": {"@b/c": ">=2"},
        "devDependencies": {"typescript": "^5"},
    }
    assert [(part.purl, part.requirement, part.optional) for part in peers(package)] == [
        ("pkg:npm/a", "a@^1", False),
        ("pkg:npm/%40b/c", "@b/c@>=2", True),
    ]
