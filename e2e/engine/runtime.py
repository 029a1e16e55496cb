"""The engine's container runtime: runc, with the capabilities that this machine can grant.

`docker run --privileged` and `docker exec --privileged` ask for every capability that the kernel knows. Where the
engine itself lacks one (CAP_SYS_RESOURCE in many virtual machines and containers), runc fails with `unable to apply
caps`. This program removes from the container's specification what the engine lacks, and then becomes runc.
It runs once for each container and `docker exec`, so it imports little.
"""

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

# Numbers of <linux/capability.h>. Only these are ever removed: a container without another one would be a surprise.
CAPABILITIES = {"CAP_SYS_RESOURCE": 24}


def main(arguments: list[str]) -> None:
    granted = effective(Path("/proc/self/status").read_text())
    lacking = {name for name, number in CAPABILITIES.items() if not granted >> number & 1}
    for option, value in itertools.pairwise(arguments):
        if option == "--bundle":
            _rewrite(Path(value, "config.json"), lacking, inside="process")
        elif option == "--process":
            _rewrite(Path(value), lacking)
    os.execvp("runc", ["runc", *arguments])  # noqa: S606


def effective(status: str) -> int:
    """The effective capabilities in the text of `/proc/PID/status`, as a bit mask."""
    [line] = [line for line in status.splitlines() if line.startswith("CapEff:")]
    return int(line.removeprefix("CapEff:"), 16)


def without(process: dict[str, Any], lacking: set[str]) -> dict[str, Any]:
    """A container's process specification without the capabilities `lacking`."""
    sets = process.get("capabilities") or {}
    kept = {name: [each for each in values if each not in lacking] for name, values in sets.items()}
    return {**process, "capabilities": kept}


def _rewrite(path: Path, lacking: set[str], inside: str = "") -> None:
    specification = json.loads(path.read_text())
    if inside:
        specification[inside] = without(specification[inside], lacking)
    else:
        specification = without(specification, lacking)
    path.write_text(json.dumps(specification))


if __name__ == "__main__":
    main(sys.argv[1:])
