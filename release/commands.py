"""The commands that build the images and publish a release. No I/O.

They run in `.github/workflows/release.yml`, which provides the credentials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .project import IMAGES, Project

Command = tuple[str, ...]

PLATFORMS: Final = "linux/amd64,linux/arm64"


def build_image(project: Project, image: str, version: str, epoch: int, metadata: str) -> Command:
    """Return the command that builds an image for all platforms and pushes it.

    Args:
        epoch: the time of the commit, which the files of the image get.
        metadata: the file that buildx writes the digest to.
    """
    return (
        *("docker", "buildx", "build", "--file", IMAGES[image], "--platform", PLATFORMS),
        *("--tag", f"{project.image(image)}:{version}"),
        *("--build-arg", f"SOURCE_DATE_EPOCH={epoch}"),
        *("--label", f"org.opencontainers.image.version={version}"),
        *("--label", f"org.opencontainers.image.source={project.url}"),
        # The SBOM of the builder includes the packages of the base image.
        *("--provenance=mode=max", "--sbom=true"),
        *("--output", "type=image,push=true,rewrite-timestamp=true"),
        *("--metadata-file", metadata, "."),
    )


def sign(reference: str) -> Command:
    """Return the command that signs an artifact of a registry, by digest, with the identity of the workflow."""
    return ("cosign", "sign", "--yes", reference)


def push_chart(project: Project, file: str) -> Command:
    """Return the command that pushes the chart. Helm prints its digest."""
    return ("helm", "push", file, project.charts)


def publish_python(files: Sequence[str]) -> Command:
    """Return the command that uploads the Python distributions with trusted publishing."""
    return ("uv", "publish", "--trusted-publishing", "always", *files)


def publish_npm(file: str) -> Command:
    """Return the command that uploads the npm package. npm detects trusted publishing."""
    return ("npm", "publish", "--access", "public", "--provenance", file)


def publish_github(version: str, notes: str, files: Sequence[str]) -> Command:
    """Return the command that creates the release page of an existing tag."""
    return (
        *("gh", "release", "create", f"v{version}", "--verify-tag", "--title", version),
        *("--notes-file", notes, *files),
    )


def outputs(project: Project, digests: Mapping[str, str]) -> str:
    """Return the outputs of a workflow step: `NAME-image` and `NAME-digest` of each image."""
    return "".join(
        f"{name}-image={project.image(name)}\n{name}-digest={digest}\n" for name, digest in sorted(digests.items())
    )
