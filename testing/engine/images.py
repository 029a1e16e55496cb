"""The names and contents of the images that replace those of registries."""

import json
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testing.cluster import binaries, images
from testing.cluster.paths import cache
from testing.cluster.progress import exclusive

from . import node

PYTHON = "python:3.13-slim"
NODE = f"localhost/kind-node:{binaries.KUBERNETES}"


@dataclass(frozen=True)
class StandIn:
    """An image to import into the engine.

    Attributes:
        reference: the name that it is used by.
        root: a tar file of its root directory.
        entrypoint: its command; none for a base image.
    """

    reference: str
    root: Path
    entrypoint: Sequence[str] = ()

    @property
    def changes(self) -> list[str]:
        """Lines of a Dockerfile that configure the image."""
        lines = ["ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        if self.entrypoint:
            lines.append(f"ENTRYPOINT {json.dumps(list(self.entrypoint))}")
        if self.entrypoint == node.ENTRYPOINT:
            # systemd detects a container by it. There is no STOPSIGNAL here: `docker stop` kills after 10 s.
            lines.append("ENV container=docker")
        return lines


def stand_ins() -> list[StandIn]:
    """Return all replacement images, built if they are not in the cache.

    Raises:
        ClusterError: one cannot be made; the text says why.
    """
    with exclusive("images"):
        reference, archive = images.debian_base()
    return [
        StandIn(PYTHON, layer_of(archive, cache("engine", f"python-{reference.rpartition(':')[2]}.tar"))),
        StandIn(f"traefik:v{binaries.TRAEFIK}", _program(binaries.traefik()), ("/traefik",)),
        StandIn(NODE, node.node_image(), node.ENTRYPOINT),
    ]


def layer_of(archive: Path, target: Path) -> Path:
    """The one layer of an archive that `oci.write` made."""
    if target.exists():
        return target
    for older in target.parent.glob("python-*"):
        older.unlink()
    with tarfile.open(archive) as tar:
        # The layer is by far the largest member.
        member = max(tar.getmembers(), key=lambda each: each.size)
        content = tar.extractfile(member)
        assert content is not None
        partial = target.with_suffix(".partial")
        with content, partial.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        partial.replace(target)
    return target


def _program(binary: Path) -> Path:
    """Return a root directory with one program."""
    target = cache("engine", f"{binary.parent.name}.tar")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as workspace:
            partial = Path(workspace, "root.tar")
            with tarfile.open(partial, "w") as tar:
                tar.add(binary, arcname=binary.name)
                tmp = tarfile.TarInfo("tmp")
                tmp.type, tmp.mode = tarfile.DIRTYPE, 0o1777
                tar.addfile(tmp)
            partial.replace(target)
    return target
