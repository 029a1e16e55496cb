import json
import tarfile
from pathlib import Path

from testing.cluster import oci
from testing.engine import images, node
from testing.engine.spec import Import, Spec


def test_the_layer_of_a_base_image_is_its_root(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    content = tmp_path / "content"
    content.write_bytes(b"x" * 100_000)
    with tarfile.open(layer, "w") as tar:
        tar.add(content, arcname="content")
    oci.write(tmp_path / "image.tar", "localhost/base:1", layer)
    root = images.layer_of(tmp_path / "image.tar", tmp_path / "root.tar")
    assert root.read_bytes() == layer.read_bytes()


def test_an_image_is_configured_by_its_kind() -> None:
    path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert images.StandIn("base", Path("base.tar")).changes == [path]
    assert images.StandIn("traefik", Path("t.tar"), ("/traefik",)).changes == [path, 'ENTRYPOINT ["/traefik"]']
    changes = images.StandIn("node", Path("node.tar"), node.ENTRYPOINT).changes
    assert changes == [path, f"ENTRYPOINT {json.dumps(list(node.ENTRYPOINT))}", "ENV container=docker"]


def test_a_specification_survives_its_way() -> None:
    spec = Spec("/packages", [Import("a:1", "/a.tar", ["ENV a=b"])], ["make", "up"], {"CI": "true"})
    assert Spec.from_json(spec.to_json()) == spec
