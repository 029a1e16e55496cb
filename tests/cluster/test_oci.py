import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from testing.cluster import oci


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF, say")
    return path


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def resolve(blobs: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    blob = blobs["blobs/" + descriptor["digest"].replace(":", "/")]
    assert len(blob) == descriptor["size"]
    assert "sha256:" + hashlib.sha256(blob).hexdigest() == descriptor["digest"]
    return blob


def test_every_descriptor_leads_to_its_blob(tmp_path: Path, binary: Path) -> None:
    archive = tmp_path / "image.tar"
    oci.write_static(archive, "localhost/program:1", binary)
    blobs = members(archive)
    entry = json.loads(blobs["index.json"])["manifests"][0]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "localhost/program:1"
    manifest = json.loads(resolve(blobs, entry))
    config = json.loads(resolve(blobs, manifest["config"]))
    assert config["config"]["Entrypoint"] == ["/program"]
    assert config["config"]["User"] == "65532:65532"
    (layer,) = manifest["layers"]
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    assert len(config["history"]) == 1
    resolve(blobs, layer)


def test_the_layer_holds_the_binary_for_everyone_to_run(tmp_path: Path, binary: Path) -> None:
    archive, layer = tmp_path / "image.tar", tmp_path / "layer.tar"
    oci.write_static(archive, "localhost/program:1", binary)
    layer.write_bytes(max(members(archive).values(), key=len))
    with tarfile.open(layer) as tar:
        (member,) = tar
        assert (member.name, member.mode) == ("program", 0o755)
        assert tar.extractfile(member).read() == binary.read_bytes()  # type: ignore[union-attr]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, binary: Path) -> None:
    first, second = tmp_path / "1.tar", tmp_path / "2.tar"
    oci.write_static(first, "localhost/program:1", binary)
    binary.touch()
    oci.write_static(second, "localhost/program:1", binary)
    assert first.read_bytes() == second.read_bytes()
