"""The values and the metadata of a released chart."""

from __future__ import annotations

from typing import Any, Final

import pytest
import yaml

from release.build import ROOT
from release.changelog import Change
from release.chart import ICON, MAXIMUM_CHANGES, release_metadata, release_values
from release.project import Project

PROJECT: Final = Project("owner", "userrealtime")
CHART: Final = ROOT / "charts" / "userrealtime"
VALUES: Final = (CHART / "values.yaml").read_text()
DIGESTS: Final = {"operator": "sha256:" + "a" * 64, "relay": "sha256:" + "b" * 64, "demo": "sha256:" + "c" * 64}


def metadata(digests: dict[str, str], changes: list[Change]) -> dict[str, Any]:
    text = release_metadata((CHART / "Chart.yaml").read_text(), PROJECT, "1.2.3", digests, changes)
    result: dict[str, Any] = yaml.safe_load(text)
    return result


def test_images_are_referred_to_by_digest() -> None:
    text = release_values(VALUES, PROJECT, DIGESTS)
    found = yaml.safe_load(text)
    for name in ("operator", "relay"):
        assert found[name]["image"]["repository"] == f"ghcr.io/owner/userrealtime-{name}"
        assert found[name]["image"]["digest"] == DIGESTS[name]


def test_nothing_else_changes() -> None:
    text = release_values(VALUES, PROJECT, DIGESTS)
    before, after = VALUES.splitlines(), text.splitlines()
    different = [old for old, new in zip(before, after, strict=True) if old != new]
    assert [line.split(":")[0].strip() for line in different] == ["repository", "digest"] * 2


def test_without_digests_the_images_are_referred_to_by_tag() -> None:
    found = yaml.safe_load(release_values(VALUES, PROJECT, {}))
    assert found["operator"]["image"] == {
        "repository": "ghcr.io/owner/userrealtime-operator",
        "tag": "",
        "digest": "",
        "pullPolicy": "IfNotPresent",
    }


def test_invalid_digests_are_rejected() -> None:
    with pytest.raises(ValueError, match="the digest of the image relay is 'latest', not sha256:"):
        release_values(VALUES, PROJECT, {"relay": "latest"})


def test_changed_values_are_detected() -> None:
    with pytest.raises(ValueError, match="has 0 images userrealtime-operator without a digest, instead of one"):
        release_values("operator: {}\n", PROJECT, {})


def test_metadata() -> None:
    found = metadata(DIGESTS, [Change("added", "A `thing`: with a colon.")])
    assert (found["version"], found["appVersion"]) == ("1.2.3", "1.2.3")
    assert found["home"] == PROJECT.url
    assert found["icon"] == PROJECT.file(ICON, "1.2.3")
    assert (ROOT / ICON).is_file()
    annotations = found["annotations"]
    assert all(isinstance(value, str) for value in annotations.values())
    assert yaml.safe_load(annotations["artifacthub.io/images"]) == [
        {"name": name, "image": f"ghcr.io/owner/userrealtime-{name}:1.2.3@{DIGESTS[name]}"}
        for name in ("operator", "relay")
    ]
    assert yaml.safe_load(annotations["artifacthub.io/changes"]) == [
        {"kind": "added", "description": "A `thing`: with a colon."}
    ]


def test_links_lead_to_files() -> None:
    links = yaml.safe_load(metadata({}, [])["annotations"]["artifacthub.io/links"])
    assert links
    assert all((ROOT / link["url"].partition("/v1.2.3/")[2]).is_file() for link in links)


def test_the_number_of_changes_is_limited() -> None:
    found = metadata({}, [Change("added", str(number)) for number in range(MAXIMUM_CHANGES + 9)])
    assert len(yaml.safe_load(found["annotations"]["artifacthub.io/changes"])) == MAXIMUM_CHANGES


def test_the_crd_of_the_annotations_is_that_of_the_chart() -> None:
    annotations = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
    [crd] = yaml.safe_load(annotations["artifacthub.io/crds"])
    [example] = yaml.safe_load(annotations["artifacthub.io/crdsExamples"])
    definition = yaml.safe_load((ROOT / "crds" / "userrealtimes.yaml").read_text())
    names = [version["name"] for version in definition["spec"]["versions"]]
    assert (crd["name"], crd["kind"]) == (definition["metadata"]["name"], definition["spec"]["names"]["kind"])
    assert crd["version"] in names
    assert example["apiVersion"] == f"{definition['spec']['group']}/{crd['version']}"
