"""The command line of a release.

`build VERSION` (`make release`) checks the work tree and writes the files of the release into dist/.
`images VERSION` builds and pushes the images, and writes their digests into build/release/images.json; `build` reads
them. `publish VERSION PART` uploads what is in dist/: the chart, the Python distributions, the npm package, or the
page of the release. `sign` signs the images and the chart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from testing.cluster import ClusterError, tools

from . import build, checks, commands
from .errors import ReleaseError
from .project import IMAGES

DIST: Final = build.ROOT / "dist"
WORK: Final = build.ROOT / "build" / "release"
LIMIT_S: Final = 3600.0


def build_release(version: str) -> None:
    """Check the work tree, and build all files into dist/, which is replaced."""
    check(version)
    digests = build.read_digests(WORK / build.DIGESTS)
    if not digests:
        print("The chart refers to the images by tag, because build/release/images.json does not exist.")
    with tempfile.TemporaryDirectory(dir=build.ROOT / "build") as directory, build.source() as source:
        target = Path(directory, "dist")
        target.mkdir()
        build.build(source, version, digests, build.Tools(str(tools.helm())), target)
        shutil.rmtree(DIST, ignore_errors=True)
        target.rename(DIST)
    for path in sorted(DIST.iterdir()):
        print(f"dist/{path.name}")


def check(version: str) -> None:
    """Check that the work tree can be released.

    Raises:
        ReleaseError: it cannot. The message lists all reasons.
    """
    if found := checks.problems(version, build.tree(version)):
        raise ReleaseError("\n".join(f"  - {problem}" for problem in found))


def build_images(version: str) -> None:
    """Build and push the images, and write their digests."""
    check(version)
    project = build.project()
    digests = {}
    with build.source() as source:
        for image in IMAGES:
            metadata = WORK / f"{image}.json"
            _call(commands.build_image(project, image, version, source.epoch, str(metadata)), source.root)
            digests[image] = json.loads(metadata.read_text())["containerimage.digest"]
    (WORK / build.DIGESTS).write_text(json.dumps(digests, indent=2) + "\n")
    if output := os.environ.get("GITHUB_OUTPUT"):
        with Path(output).open("a") as file:
            file.write(commands.outputs(project, digests))


def sign(version: str) -> None:
    """Sign the images by their digests."""
    project = build.project()
    digests = build.read_digests(WORK / build.DIGESTS)
    if not digests:
        raise ReleaseError(f"the images of {version} have no digests: run `make release-images` first")
    for image, digest in digests.items():
        _call(commands.sign(f"{project.image(image)}@{digest}"))


def publish_chart(version: str) -> None:
    """Push the chart, and sign it."""
    project = build.project()
    pushed = _call(commands.push_chart(project, str(DIST / f"userrealtime-chart-{version}.tgz")))
    found = re.search(r"sha256:[0-9a-f]{64}", pushed)
    if found is None:
        raise ReleaseError(f"helm push printed no digest, so the chart is not signed:\n{pushed}")
    _call(commands.sign(f"{project.charts.removeprefix('oci://')}/userrealtime@{found[0]}"))


def publish_python(version: str) -> None:
    """Upload the Python distributions."""
    names = (f"userrealtime-{version}-py3-none-any.whl", f"userrealtime-{version}.tar.gz")
    _call(commands.publish_python([str(DIST / name) for name in names]))


def publish_npm(version: str) -> None:
    """Upload the npm package."""
    _call(commands.publish_npm(str(DIST / f"userrealtime-js-{version}.tgz")))


def publish_github(version: str) -> None:
    """Create the page of the release, with all files."""
    files = sorted(str(path) for path in DIST.iterdir() if path.name != build.NOTES)
    _call(commands.publish_github(version, str(DIST / build.NOTES), files))


ACTIONS: Final[dict[str, Callable[[str], None]]] = {
    "check": check,
    "build": build_release,
    "images": build_images,
    "sign": sign,
    "publish-chart": publish_chart,
    "publish-python": publish_python,
    "publish-npm": publish_npm,
    "publish-github": publish_github,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m release", description="Build and publish a release.")
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("version", help="the version, such as 0.1.0, or its tag")
    options = parser.parse_args(arguments)
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        ACTIONS[options.action](checks.parse_version(options.version))
    except (ReleaseError, ClusterError, ValueError) as error:
        print(f"the release is not possible:\n{error}", file=sys.stderr)
        return 1
    return 0


def _call(command: commands.Command, folder: Path = build.ROOT) -> str:
    # The output goes to the log of the workflow as well.
    print("+", *command, flush=True)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise ReleaseError(f"{command[0]}: {error}") from None
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise ReleaseError(f"{command[0]} failed with status {done.returncode}; the output is above")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
