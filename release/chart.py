"""The chart of a release: its version, its images by digest, and the annotations of Artifact Hub. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from .changelog import Change
from .project import Project

ICON: Final = "charts/userrealtime/icon.svg"
CHART_IMAGES: Final = ("operator", "relay")
"""The images that the values of the chart name."""
MAXIMUM_CHANGES: Final = 50
"""The number of changes that Artifact Hub shows; the changelog has all of them."""
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def reference(project: Project, image: str, version: str, digests: Mapping[str, str]) -> str:
    """Return the reference of an image, with the digest if it is known."""
    digest = digests.get(image)
    return f"{project.image(image)}:{version}" + (f"@{digest}" if digest else "")


def release_values(text: str, project: Project, digests: Mapping[str, str]) -> str:
    """Return values.yaml with the published images. Comments are kept.

    Raises:
        ValueError: the text does not have the expected lines, or a digest is invalid.
    """
    for image in CHART_IMAGES:
        digest = digests.get(image, "")
        if digest and _DIGEST.fullmatch(digest) is None:
            raise ValueError(f"the digest of the image {image} is {digest!r}, not sha256: and 64 hexadecimal digits")
        between = r'(?P<between>(?: +#.*\n| +tag: ""\n)*)'
        lines = rf'^(?P<before> +repository: )userrealtime-{image}\n{between}(?P<digest> +digest: )""$'
        pattern = re.compile(lines, re.MULTILINE)
        name = project.image(image)

        def replace(found: re.Match[str], name: str = name, digest: str = digest) -> str:
            return f'{found["before"]}{name}\n{found["between"]}{found["digest"]}"{digest}"'

        text, count = pattern.subn(replace, text)
        if count != 1:
            raise ValueError(f"values.yaml has {count} images userrealtime-{image} without a digest, instead of one")
    return text


def release_metadata(
    text: str, project: Project, version: str, digests: Mapping[str, str], changes: Sequence[Change]
) -> str:
    """Return Chart.yaml with the version, links and the annotations of Artifact Hub that depend on a release."""
    metadata: dict[str, Any] = yaml.safe_load(text)
    links = {"documentation": "README.md", "changelog": "CHANGELOG.md", "support": "docs/releases.md"}
    annotations = {
        **metadata.get("annotations", {}),
        "artifacthub.io/images": _yaml(
            {"name": image, "image": reference(project, image, version, digests)} for image in CHART_IMAGES
        ),
        "artifacthub.io/links": _yaml(
            {"name": name, "url": project.page(path, version)} for name, path in links.items()
        ),
        "artifacthub.io/changes": _yaml(
            {"kind": change.kind, "description": change.text} for change in changes[:MAXIMUM_CHANGES]
        ),
    }
    result = {
        **metadata,
        "version": version,
        "appVersion": version,
        "home": project.url,
        "sources": [project.url],
        "icon": project.file(ICON, version),
        "maintainers": [{"name": project.owner, "url": f"https://github.com/{project.owner}"}],
        "annotations": annotations,
    }
    return yaml.safe_dump(result, sort_keys=False, width=120, allow_unicode=True)


def _yaml(items: Any) -> str:
    return yaml.safe_dump(list(items), sort_keys=False, width=1000, allow_unicode=True)
