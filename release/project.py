"""Names of the project and the places that contain its version. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

IMAGES: Final = {
    "operator": "Dockerfile.operator",
    "relay": "Dockerfile.relay",
    "demo": "examples/demo/Dockerfile.demo",
}
"""The published images, and the Dockerfile of each."""

VERSION_PLACES: Final = {
    "operator/userrealtime_operator/__init__.py": r'^__version__ = "([^"]*)"$',
    "relay/userrealtime_relay/__init__.py": r'^__version__ = "([^"]*)"$',
    "charts/userrealtime/Chart.yaml": r"^(?:version|appVersion): (\S+)$",
    "clients/js/package.json": r'^  "version": "([^"]*)",$',
    "clients/js/package-lock.json": r'^(?:  |      )"version": "([^"]*)",$',
}
"""Files that contain the version, each with a pattern that matches it."""

_REPOSITORY: Final = re.compile(r"https://github\.com/([A-Za-z0-9-]+)/([A-Za-z0-9._-]+)")


@dataclass(frozen=True)
class Project:
    """The owner and the name of the repository."""

    owner: str
    name: str

    @property
    def url(self) -> str:
        """The address of the repository."""
        return f"https://github.com/{self.owner}/{self.name}"

    @property
    def registry(self) -> str:
        """The prefix of the images. References are in lower case."""
        return f"ghcr.io/{self.owner.lower()}"

    @property
    def charts(self) -> str:
        """The OCI repository that contains the chart."""
        return f"oci://{self.registry}/charts"

    def image(self, name: str) -> str:
        """The reference of an image, without a tag."""
        return f"{self.registry}/{self.name}-{name}"

    def file(self, path: str, version: str) -> str:
        """The address of the content of a file of a version."""
        return f"https://raw.githubusercontent.com/{self.owner}/{self.name}/v{version}/{path}"

    def download(self, name: str, version: str) -> str:
        """The address of a file on the page of a release."""
        return f"{self.url}/releases/download/v{version}/{name}"

    def page(self, path: str, version: str) -> str:
        """The address of the page of a file of a version."""
        return f"{self.url}/blob/v{version}/{path}"


def parse_project(repository: str) -> Project:
    """Return the project of a repository's address.

    Raises:
        ValueError: it is not an address of a repository on GitHub.
    """
    found = _REPOSITORY.fullmatch(repository)
    if found is None:
        raise ValueError(f"{repository!r} is not https://github.com/OWNER/NAME: correct project.urls in pyproject.toml")
    return Project(found[1], found[2])


def versions(path: str, text: str) -> set[str]:
    """Return the versions that a file of `VERSION_PLACES` contains; a lock file contains those of dependencies, too."""
    # The version of the package itself comes before the versions of its dependencies.
    found: list[str] = re.findall(VERSION_PLACES[path], text, re.MULTILINE)
    return set(found[:2])
