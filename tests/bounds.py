"""The unit tests with the lowest and with the newest versions of the dependencies that pyproject.toml allows.

`python -m tests.bounds` (`make test-versions`) makes an environment for each, from the locked versions, replaces the
dependencies of the products in it, and runs the unit tests. `python -m tests.bounds lowest` runs one of the two.

The lowest versions show that a lower bound is true. The newest ones show what a user gets who installs from PyPI; they
may differ from the locked ones as soon as a dependency has released a version below its upper bound.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from typing import Final

from packaging.requirements import Requirement
from packaging.version import Version

from testing.cluster.paths import REPOSITORY
from testing.cluster.progress import heed_sigterm, step

PRODUCTS: Final = ("operator", "client", "server", "cli", "relay", "nats", "kafka")
"""The extras of pyproject.toml that users install. The tools for development keep their locked versions."""
EDGES: Final = ("lowest", "newest")
LIMIT_S: Final = 1800.0


def requirements() -> list[Requirement]:
    """Return the dependencies of the products."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [Requirement(text) for extra in PRODUCTS for text in extras[extra]]


def pins(edge: str, wanted: Sequence[Requirement]) -> list[str]:
    """Return the requirements to install: unchanged, or each pinned to its lower bound.

    All products share one environment. Where their lower bounds differ, the highest one is taken.

    Raises:
        ValueError: a requirement has no lower or no upper bound.
    """
    lowest: dict[str, Version] = {}
    for requirement in wanted:
        bounds = {each.operator: each.version for each in requirement.specifier}
        if not {">=", "<"} <= bounds.keys():
            raise ValueError(f"{requirement} in pyproject.toml needs a lower and an upper bound")
        bound = Version(bounds[">="])
        lowest[requirement.name] = max(bound, lowest.get(requirement.name, bound))
    if edge == "lowest":
        return sorted(f"{name}=={version}" for name, version in lowest.items())
    return sorted({str(requirement) for requirement in wanted})


def run(edge: str) -> int:
    """Run the unit tests at one edge of the bounds; return the exit status."""
    venv = f".venv-{edge}"
    with step(f"an environment with the {edge} versions", usual="a minute"):
        _call("make", "venv", f"VENV={venv}", f"PYTHON={sys.executable}")
        _call(
            *(f"{venv}/bin/uv", "pip", "install", "--quiet", "--upgrade", "--python", f"{venv}/bin/python"),
            *pins(edge, requirements()),
        )
    return subprocess.run([f"{venv}/bin/pytest", "-m", "unit"], cwd=REPOSITORY, timeout=LIMIT_S, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bounds", description="Unit tests at the versions' bounds.")
    parser.add_argument("edges", nargs="*", help=f"{EDGES[0]} or {EDGES[1]}; default: both")
    edges = parser.parse_args(arguments).edges or EDGES
    if not set(edges) <= set(EDGES):
        parser.error(f"choose from {', '.join(EDGES)}")
    heed_sigterm()
    return max([run(edge) for edge in edges])


def _call(*command: str) -> None:
    subprocess.run(command, cwd=REPOSITORY, timeout=LIMIT_S, check=True, env=os.environ)


if __name__ == "__main__":
    sys.exit(main())
