"""An image without a builder: a handful of files and a command, as an OCI archive.

For the images whose whole content is one static binary (pause, CoreDNS, Traefik). The archive depends on nothing but
its inputs, so the same inputs give the same bytes.
"""

import hashlib
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def write_static(archive: Path, reference: str, binary: Path) -> None:
    """An image that contains only `binary`, and runs it as user 65532."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as workspace:
        layer = Path(workspace) / "layer.tar"
        with tarfile.open(layer, "w") as tar:
            member = tarfile.TarInfo(binary.name)
            member.size = binary.stat().st_size
            member.mode = 0o755
            with binary.open("rb") as content:
                tar.addfile(member, content)
        write(archive, reference, layer, entrypoint=[f"/{binary.name}"], user="65532:65532")


def write(archive: Path, reference: str, layer: Path, *, entrypoint: Sequence[str] = (), user: str = "") -> None:
    """Write an OCI archive of one uncompressed layer, named `reference`. Written whole or not at all."""
    layer_digest = _file_digest(layer)
    container: dict[str, Any] = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
    if entrypoint:
        container["Entrypoint"] = list(entrypoint)
    if user:
        container["User"] = user
    config = _json(
        {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": container,
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
            # Builders refuse to build upon an image whose history does not count its layers.
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "testing.cluster.oci"}],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _descriptor(CONFIG, config),
            "layers": [{"mediaType": LAYER, "digest": layer_digest, "size": layer.stat().st_size}],
        }
    )
    index = _json(
        {
            "schemaVersion": 2,
            "manifests": [
                _descriptor(MANIFEST, manifest) | {"annotations": {"org.opencontainers.image.ref.name": reference}}
            ],
        }
    )
    partial = archive.with_name(archive.name + ".partial")
    with tarfile.open(partial, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", index)
        for blob in (config, manifest):
            _add(tar, _blob(_digest(blob)), blob)
        member = tarfile.TarInfo(_blob(layer_digest))
        member.size = layer.stat().st_size
        with layer.open("rb") as content:
            tar.addfile(member, content)
    partial.replace(archive)


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as content:
        return "sha256:" + hashlib.file_digest(content, "sha256").hexdigest()


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _add(tar: tarfile.TarFile, name: str, blob: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(blob)
    tar.addfile(member, io.BytesIO(blob))
