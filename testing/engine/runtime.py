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
    removed = lacking(Path("/proc/self/status").read_text())
    for option, value in itertools.pairwise(arguments):
        if option == "--bundle":
            _rewrite(Path(value, "config.json"), removed, inside="process")
        elif option == "--process":
            _rewrite(Path(value), removed)
    os.execvp("runc", ["runc", *arguments])  # noqa: S606


def lacking(status: str) -> set[str]:
    """Return the CAPABILITIES that are missing in the text of `/proc/PID/status`."""
    granted = effective(status)
    return {name for name, number in CAPABILITIES.items() if not granted >> number & 1}


def effective(status: str) -> int:
    """The effective capabilities in the text of `/proc/PID/status`, as a bit mask."""
    [line] = [line for line in status.splitlines() if line.startswith("CapEff:")]
    return int(line.removeprefix("CapEff:"), 16)


def without(process: dict[str, Any], removed: set[str]) -> dict[str, Any]:
    """A container's process specification without the capabilities `removed`."""
    if not (sets := process.get("capabilities")):
        return process
    kept = {name: [each for each in values if each not in removed] for name, values in sets.items()}
    return {**process, "capabilities": kept}


def _rewrite(path: Path, removed: set[str], inside: str = "") -> None:
    specification = json.loads(path.read_text())
    if inside:
        specification[inside] = without(specification[inside], removed)
    else:
        specification = without(specification, removed)
    path.write_text(json.dumps(specification))


if __name__ == "__main__":
    main(sys.argv[1:])
