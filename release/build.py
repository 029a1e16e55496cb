"""The files of a release, built from a commit.

Only files of the commit are used, in a copy, so nothing else in the work tree can get into a release. All times in the
files are that of the commit. The same commit gives the same bytes, with the same versions of the tools.
"""

from __future__ import annotations

import email
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml
from packaging.requirements import Requirement

from website import reference

from . import changelog, chart, krew, readme, sbom
from .checks import Tree
from .errors import ReleaseError
from .project import IMAGES, VERSION_PLACES, Project, parse_project, versions
from .sbom import Component

ROOT: Final = Path(__file__).parents[1]
CHECKSUMS: Final = "SHA256SUMS"
NOTES: Final = "release-notes.md"
DIGESTS: Final = "images.json"
LIMIT_S: Final = 600.0


@dataclass(frozen=True)
class Source:
    """The files of a commit, in a directory.

    Attributes:
        epoch: the time of the commit, in seconds since 1970.
    """

    root: Path
    epoch: int

    @property
    def timestamp(self) -> str:
        """The time of the commit as in ISO 8601."""
        return datetime.fromtimestamp(self.epoch, UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class Tools:
    """Programs that are not part of the Python environment."""

    helm: str
    npm: str = "npm"


def tree(version: str) -> Tree:
    """Return the state of the work tree.

    Raises:
        ReleaseError: git failed.
    """
    tag = _run("git", "tag", "--list", f"v{version}").strip()
    return Tree(
        changes=_run("git", "status", "--porcelain"),
        commit=_run("git", "rev-parse", "HEAD").strip(),
        tagged=_run("git", "rev-parse", f"{tag}^{{commit}}").strip() if tag else None,
        versions={path: versions(path, (ROOT / path).read_text()) for path in VERSION_PLACES},
        changelog=(ROOT / "CHANGELOG.md").read_text(),
    )


def project(root: Path = ROOT) -> Project:
    """Return the project, from `project.urls` in pyproject.toml."""
    return parse_project(tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"])


@contextmanager
def source(commit: str = "HEAD") -> Iterator[Source]:
    """Yield the files of a commit, in a directory that is removed afterwards.

    Raises:
        ReleaseError: git failed.
    """
    with tempfile.TemporaryDirectory(prefix="userrealtime-release-") as directory:
        archive = Path(directory, "source.tar")
        _run("git", "archive", f"--output={archive}", commit)
        root = Path(directory, "source")
        with tarfile.open(archive) as files:
            files.extractall(root, filter="data")
        archive.unlink()
        yield Source(root, int(_run("git", "show", "--no-patch", "--format=%ct", commit)))


def build(source: Source, version: str, digests: Mapping[str, str], tools: Tools, target: Path) -> None:
    """Build all files of a release in an empty directory.

    Args:
        digests: the digests of the published images, by their names; without them, the chart refers to tags.

    Raises:
        ReleaseError: a tool failed.
    """
    about = project(source.root)
    section = changelog.sections((source.root / "CHANGELOG.md").read_text()).get(version)
    if section is None:
        raise ReleaseError(f"CHANGELOG.md has no section for {version}")
    (target / NOTES).write_text(section.body + "\n")
    wheel = build_python(source, target)
    build_npm(source, about, tools, version, target)
    build_chart(source, about, tools, version, digests, changelog.changes(section), target)
    build_plugin(source, about, version, target)
    build_bills(source, about, version, digests, wheel, target)
    names = sorted(path.name for path in target.iterdir() if path.name != NOTES)
    (target / CHECKSUMS).write_text("".join(f"{sha256(target / name)}  {name}\n" for name in names))


def build_python(source: Source, target: Path) -> Path:
    """Build the source distribution and the wheel; return the wheel."""
    _run(sys.executable, "-m", "hatchling", "build", "-d", str(target), source=source, folder=source.root)
    [wheel] = target.glob("*.whl")
    return wheel


def build_npm(source: Source, project: Project, tools: Tools, version: str, target: Path) -> Path:
    """Build the npm package; return its path. It has another name than the chart's package."""
    folder = source.root / "clients" / "js"
    package = json.loads((folder / "package.json").read_text())
    # npm requires it for the attestation of a package's provenance.
    package["repository"] = {"type": "git", "url": f"git+{project.url}.git", "directory": "clients/js"}
    (folder / "package.json").write_text(json.dumps(package, indent=2) + "\n")
    if not (folder / "node_modules").exists():
        _run(tools.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", source=source, folder=folder)
    with tempfile.TemporaryDirectory() as directory:
        _run(tools.npm, "pack", "--silent", f"--pack-destination={directory}", source=source, folder=folder)
        [packed] = Path(directory).glob("*.tgz")
        return normalized(packed, target / f"userrealtime-js-{version}.tgz", source.epoch)


def build_chart(
    source: Source,
    project: Project,
    tools: Tools,
    version: str,
    digests: Mapping[str, str],
    changes: Sequence[changelog.Change],
    target: Path,
) -> Path:
    """Build the package of the chart; return its path."""
    folder = source.root / "charts" / "userrealtime"
    try:
        values = chart.release_values((folder / "values.yaml").read_text(), project, digests)
    except ValueError as error:
        raise ReleaseError(str(error)) from None
    metadata = chart.release_metadata((folder / "Chart.yaml").read_text(), project, version, digests, changes)
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "userrealtime")
        shutil.copytree(folder, copy)
        (copy / "values.yaml").write_text(values)
        (copy / "Chart.yaml").write_text(metadata)
        page = readme.chart_readme(project, version, yaml.safe_load(metadata), reference.values(copy))
        (copy / "README.md").write_text(page)
        _run(tools.helm, "package", str(copy), "--destination", directory, source=source)
        [packed] = Path(directory).glob("*.tgz")
        return normalized(packed, target / f"userrealtime-chart-{version}.tgz", source.epoch)


def build_plugin(source: Source, project: Project, version: str, target: Path) -> None:
    """Build the plugin for krew: its archive, and its manifest."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, krew.PROGRAM)
        program.write_text(krew.program(version))
        program.chmod(0o755)
        packed = Path(directory, "plugin.tar.gz")
        with tarfile.open(packed, "w:gz") as files:
            files.add(program, program.name)
            files.add(source.root / "LICENSE", "LICENSE")
        archive = normalized(packed, target / krew.archive(version), source.epoch)
    (target / krew.MANIFEST).write_text(krew.manifest(project, version, sha256(archive)))


def build_bills(
    source: Source, project: Project, version: str, digests: Mapping[str, str], wheel: Path, target: Path
) -> None:
    """Build the bill of materials of each artifact."""

    def write(name: str, subject: Component, parts: list[Component]) -> None:
        (target / f"userrealtime-{name}-{version}.cdx.json").write_text(sbom.bill(subject, parts, source.timestamp))

    requirements = requirements_of(wheel)
    write(
        "python",
        Component("library", "userrealtime", f"pkg:pypi/userrealtime@{version}", version, sha256=sha256(wheel)),
        [sbom.python_component(requirement) for requirement in requirements],
    )
    packed = target / f"userrealtime-js-{version}.tgz"
    write(
        "js",
        Component("library", "userrealtime", f"pkg:npm/userrealtime@{version}", version, sha256=sha256(packed)),
        peers(json.loads((source.root / "clients" / "js" / "package.json").read_text())),
    )
    images = {name: image_component(project, name, version, digests) for name in IMAGES}
    for name, image in images.items():
        write(name, image, sbom.locked_components((source.root / "locks" / f"{name}.txt").read_text()))
    packed = target / f"userrealtime-chart-{version}.tgz"
    purl = f"pkg:helm/userrealtime@{version}"
    write(
        "chart",
        Component("application", "userrealtime", purl, version, sha256=sha256(packed)),
        [images[name] for name in chart.CHART_IMAGES],
    )


def image_component(project: Project, name: str, version: str, digests: Mapping[str, str]) -> Component:
    """Return an image as a component."""
    reference = f"{project.name}-{name}"
    digest = digests.get(name)
    identity = f"{digest.replace(':', '%3A')}?repository_url={project.image(name)}&tag={version}" if digest else version
    return Component("container", project.image(name), f"pkg:oci/{reference}@{identity}", version)


def peers(package: Mapping[str, Any]) -> list[Component]:
    """Return the run-time and peer dependencies of an npm package. Its own build tools are not part of it."""
    return [
        Component(
            "library", name, f"pkg:npm/{name.replace('@', '%40')}", None, f"{name}@{wanted}", kind != "dependencies"
        )
        for kind in ("dependencies", "peerDependencies")
        for name, wanted in package.get(kind, {}).items()
    ]


def requirements_of(wheel: Path) -> list[Requirement]:
    """Return the requirements of a wheel, those of extras included."""
    with zipfile.ZipFile(wheel) as files:
        [name] = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(files.read(name))
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def normalized(archive: Path, target: Path, epoch: int) -> Path:
    """Write a .tgz with the same files in sorted order, without owners, and with one time; return its path.

    Helm and npm write the times of this machine, and the header of gzip depends on the platform.
    """
    with tarfile.open(archive) as packed:
        members = sorted((member for member in packed.getmembers() if member.isfile()), key=lambda member: member.name)
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as result:
            for member in members:
                entry = tarfile.TarInfo(member.name)
                entry.size, entry.mtime = member.size, epoch
                entry.mode = 0o755 if member.mode & 0o100 else 0o644
                result.addfile(entry, packed.extractfile(member))
    target.write_bytes(gzip.compress(plain.getvalue(), mtime=epoch))
    return target


def sha256(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_digests(path: Path) -> dict[str, str]:
    """Return the digests that `python -m release images` has written; nothing if there are none.

    Raises:
        ReleaseError: the file is invalid or incomplete.
    """
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or found.keys() != IMAGES.keys():
        raise ReleaseError(f"{path} does not have a digest for each of {', '.join(IMAGES)}: build the images again")
    return {name: str(digest) for name, digest in found.items()}


def _run(*command: str, source: Source | None = None, folder: Path | None = None) -> str:
    environment = dict(os.environ)
    if source is not None:
        environment["SOURCE_DATE_EPOCH"] = str(source.epoch)
    try:
        done = subprocess.run(
            command, cwd=folder or ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except FileNotFoundError:
        raise ReleaseError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ReleaseError(f"{' '.join(command)} did not end within {LIMIT_S:.0f} s") from None
    if done.returncode != 0:
        output = re.sub(r"\n{2,}", "\n", f"{done.stdout}{done.stderr}").strip()
        raise ReleaseError(f"{' '.join(command)} failed with status {done.returncode}:\n{output}")
    return done.stdout
