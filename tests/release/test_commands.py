"""The commands that publish a release."""

from __future__ import annotations

from typing import Final

import pytest

from release import commands
from release.project import IMAGES, Project

PROJECT: Final = Project("Owner", "userrealtime")


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_built_for_all_platforms_with_the_time_of_the_commit(image: str) -> None:
    command = commands.build_image(PROJECT, image, "1.2.3", 1700000000, "x.json")
    text = " ".join(command)
    assert f"--file {IMAGES[image]} --platform linux/amd64,linux/arm64" in text
    assert f"--tag ghcr.io/owner/userrealtime-{image}:1.2.3" in text
    assert "--build-arg SOURCE_DATE_EPOCH=1700000000" in text
    assert "--provenance=mode=max --sbom=true" in text
    assert command[-3:] == ("--metadata-file", "x.json", ".")


def test_the_chart_is_pushed_beside_the_images() -> None:
    assert commands.push_chart(PROJECT, "x.tgz") == ("helm", "push", "x.tgz", "oci://ghcr.io/owner/charts")


def test_uploads_use_trusted_publishing() -> None:
    assert commands.publish_python(["a.whl", "a.tar.gz"])[2:4] == ("--trusted-publishing", "always")
    assert "--provenance" in commands.publish_npm("x.tgz")


def test_the_page_of_a_release_needs_its_tag() -> None:
    command = commands.publish_github("1.2.3", "notes.md", ["a", "b"])
    assert command[:5] == ("gh", "release", "create", "v1.2.3", "--verify-tag")
    assert command[-2:] == ("a", "b")


def test_outputs_of_the_workflow() -> None:
    assert commands.outputs(PROJECT, {"relay": "sha256:b", "demo": "sha256:a"}) == (
        "demo-image=ghcr.io/owner/userrealtime-demo\ndemo-digest=sha256:a\n"
        "relay-image=ghcr.io/owner/userrealtime-relay\nrelay-digest=sha256:b\n"
    )
