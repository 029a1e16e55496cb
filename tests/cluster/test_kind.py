"""The kind provider, against fake programs that record their calls. The real ones run in CI."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from testing.cluster import addons, binaries, images, kind, selection
from testing.cluster.errors import ClusterError, UnknownError
from testing.cluster.kind import KindCluster, refused_rules, stale_pods
from testing.cluster.paths import REPOSITORY
from testing.cluster.provider import Image

# docker, kind, kubectl and helm in one program, with its responses in files beside it.
PROGRAM = """\
import json, pathlib, sys
home = pathlib.Path(sys.argv[0]).parent
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with (home / "calls").open("a") as calls:
    calls.write(" ".join([name, *arguments]) + "\\n")
node, complete = home / "node.json", home / "complete"

def new_node(port):
    bindings = {"30080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
    return {
        "State": {"Status": "running", "StartedAt": "2026-01-01T00:00:00.5Z"},
        "HostConfig": {"PortBindings": bindings},
    }

def docker(*a):
    if a[0] == "--version":
        version = home / "docker-version"
        print(f"Docker version {version.read_text() if version.exists() else '20.10.24'}, build 1")
    elif a[0] == "buildx":
        sys.exit("docker: unknown command: docker buildx")
    elif a[0] == "version":
        print(json.dumps({"Client": {}, "Server": {"Version": "20.10.24"}}))
    elif a[0] == "info":
        print("{}")
    elif a[:2] == ("container", "inspect"):
        if not node.exists():
            sys.exit("Error: No such container: x")
        print(json.dumps([json.loads(node.read_text())]))
    elif a[0] in ("start", "unpause"):
        found = json.loads(node.read_text())
        found["State"]["Status"] = "running"
        node.write_text(json.dumps(found))
    elif a[0] == "rm":
        node.unlink()
        complete.unlink(missing_ok=True)
    elif a[:4] == ("exec", "userrealtime-control-plane", "test", "-e"):
        sys.exit(not complete.exists())
    elif a[:3] == ("exec", "userrealtime-control-plane", "touch"):
        complete.touch()
    elif a[0] == "exec":
        print((home / "loaded").read_text() if (home / "loaded").exists() else "")

def kind(*a):
    if a[0] == "version":
        print("kind v0.30.0 go1.24.6 linux/amd64")
    elif a[:2] == ("create", "cluster"):
        config = next(one for one in a if one.startswith("--config=")).partition("=")[2]
        port = json.loads(pathlib.Path(config).read_text())["nodes"][0]["extraPortMappings"][0]["hostPort"]
        node.write_text(json.dumps(new_node(port)))

    elif a[0] == "load":
        sys.exit((home / "together-fails").exists() and a[2].endswith("/images.tar"))

def kubectl(*a):
    if a[0] == "version":
        print("Client Version: v1.34.1")
    elif a[:2] == ("get", "--raw"):
        print("ok")
    elif a[:2] == ("get", "pods"):
        print('{"items": []}')
    elif "logs" in a:
        print((home / "kindnet.log").read_text())

def helm(*a):
    print("v4.1.0+g1")

{"docker": docker, "kind": kind, "kubectl": kubectl, "helm": helm}[name](*arguments)
"""


class Machine:
    """A machine with only these programs on PATH."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        for name in ("docker", "kind", "kubectl", "helm"):
            self.install(name)

    def install(self, name: str, text: str = f"#!{sys.executable} -IS\n{PROGRAM}") -> None:
        (self.directory / name).write_text(text)
        (self.directory / name).chmod(0o755)

    def remove(self, name: str) -> None:
        (self.directory / name).unlink()

    @property
    def calls(self) -> list[str]:
        path = self.directory / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def called(self, prefix: str) -> list[str]:
        return [call for call in self.calls if call.startswith(prefix)]

    def node(self) -> dict[str, Any] | None:
        path = self.directory / "node.json"
        return json.loads(path.read_text()) if path.exists() else None

    def set_state(self, state: str) -> None:
        node = self.node()
        assert node is not None
        node["State"]["Status"] = state
        (self.directory / "node.json").write_text(json.dumps(node))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path / "programs")
    monkeypatch.setenv("PATH", str(found.directory))
    for name in ("KUBECONFIG", "INGRESS_PORT", "KIND_NODE_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    archive = tmp_path / "traefik.tar"
    monkeypatch.setattr(images, "build", lambda _: [Image("userrealtime-traefik", "0123", archive)])
    monkeypatch.setattr(addons, "apply_ingress", lambda *_: None)
    monkeypatch.setattr(binaries, "gateway_api", lambda: "")
    monkeypatch.setattr(kind, "wait_http", lambda *_, **__: None)
    monkeypatch.setenv("INGRESS_PORT", str(free_port()))
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_up_creates_a_cluster_once(machine: Machine) -> None:
    cluster = KindCluster()
    cluster.up()
    [created] = machine.called("kind create cluster")
    assert f"--kubeconfig={cluster.kubeconfig}" in created
    [loaded] = machine.called("kind load image-archive")
    assert "traefik.tar" in loaded
    cluster.up()
    assert machine.called("kind create cluster") == [created]
    assert len(machine.called("kind export kubeconfig")) == 1


def test_the_node_image_is_pinned_and_can_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIND_NODE_IMAGE", raising=False)
    [node] = kind.config(8081)["nodes"]
    assert "@sha256:" in node["image"]
    assert node["extraPortMappings"][0]["listenAddress"] == "127.0.0.1"
    monkeypatch.setenv("KIND_NODE_IMAGE", "registry.test/node:1")
    assert kind.config(8081)["nodes"][0]["image"] == "registry.test/node:1"


@pytest.mark.parametrize(("state", "command"), [("exited", "docker start"), ("paused", "docker unpause")])
def test_a_stopped_node_is_started(machine: Machine, state: str, command: str) -> None:
    cluster = KindCluster()
    cluster.up()
    machine.set_state(state)
    assert "make up" in cluster.status()
    cluster.up()
    assert machine.called(command)
    assert len(machine.called("kind create cluster")) == 1


def test_a_cluster_that_kind_did_not_finish_is_created_again(machine: Machine) -> None:
    cluster = KindCluster()
    cluster.up()
    (machine.directory / "complete").unlink()
    cluster.up()
    assert len(machine.called("kind create cluster")) == 2
    assert (machine.directory / "complete").exists()


def test_down_needs_no_kind_and_touches_no_other_kubeconfig(machine: Machine) -> None:
    cluster = KindCluster()
    cluster.up()
    machine.remove("kind")
    assert selection.present()[0].name == "kind"
    before = len(machine.called("kind"))
    cluster.down()
    assert machine.node() is None
    assert len(machine.called("kind")) == before
    assert "not running" in cluster.status()
    cluster.down()


def test_the_port_of_a_running_cluster_counts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("INGRESS_PORT", str(port))
    cluster = KindCluster()
    cluster.up()
    monkeypatch.delenv("INGRESS_PORT")
    assert cluster.ingress_url == f"http://127.0.0.1:{port}"
    cluster.up()
    monkeypatch.setenv("INGRESS_PORT", "9999")
    with pytest.raises(ClusterError, match=f"at port {port}: `make down` first"):
        cluster.up()


def test_one_message_names_all_that_is_in_the_way(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, taken_port: int
) -> None:
    monkeypatch.setenv("INGRESS_PORT", str(taken_port))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    for name in ("kind", "helm"):
        machine.remove(name)
    (machine.directory / "docker-version").write_text("28.2.2")
    with pytest.raises(ClusterError, match="nothing was created") as caught:
        KindCluster().up()
    text = str(caught.value)
    assert f"port {taken_port} of 127.0.0.1" in text
    assert "docker-buildx" in text
    assert "kind.sigs.k8s.io" in text
    assert "helm.sh" in text
    assert not machine.called("kind create")


def test_images_are_loaded_once_and_together(machine: Machine, tmp_path: Path) -> None:
    cluster = KindCluster()
    batch = [Image("userrealtime-a", "1", tmp_path / "a.tar"), Image("userrealtime-b", "2", tmp_path / "b.tar")]
    references = {"userrealtime-a": "localhost/userrealtime-a:1", "userrealtime-b": "localhost/userrealtime-b:2"}
    assert cluster.load_images(batch) == references
    [saved] = machine.called("docker save")
    assert saved.endswith("localhost/userrealtime-a:1 localhost/userrealtime-b:2")
    assert len(machine.called("kind load image-archive")) == 1
    (machine.directory / "loaded").write_text("\n".join(references.values()))
    assert cluster.load_images(batch) == references
    assert len(machine.called("kind load image-archive")) == 1


def test_images_that_cannot_be_loaded_together_are_loaded_one_by_one(machine: Machine, tmp_path: Path) -> None:
    (machine.directory / "together-fails").touch()
    batch = [Image("userrealtime-a", "1", tmp_path / "a.tar"), Image("userrealtime-b", "2", tmp_path / "b.tar")]
    KindCluster().load_images(batch)
    together, a, b = machine.called("kind load image-archive")
    assert "/images.tar " in together
    assert "/a.tar " in a
    assert "/b.tar " in b


@pytest.mark.parametrize(
    "line",
    [
        "I0823 08:20:06.664521 1 controller.go:761] error syncing nftables rules /dev/stdin:12:49-56: Error: x",
        'E1006 18:17:37.6 1 controller.go:817] "syncing nftables rules" logger="nftables-sync" error=<',
        'E1006 18:17:37.6 1 controller.go:817] "syncing nftables rules" err="conn.Receive: netlink receive"',
    ],
)
def test_policies_that_the_kernel_refuses_are_not_taken_for_enforced(machine: Machine, line: str) -> None:
    usual = 'I1006 18:17:36.1 1 controller.go:800] "Syncing nftables rules" logger="nftables-sync" elapsed="2.5ms"'
    assert not refused_rules(usual)
    log = machine.directory / "kindnet.log"
    log.write_text(usual)
    with KindCluster().enforcing_policies():
        pass
    log.write_text(f"{usual}\n{line}\n")
    with pytest.raises(UnknownError, match="not enforced"), KindCluster().enforcing_policies():
        pytest.fail("policies are not enforced")


def test_a_silent_plugin_does_not_count_as_enforcing_policies(machine: Machine) -> None:
    (machine.directory / "kindnet.log").write_text("")
    with pytest.raises(UnknownError, match="shows nothing"), KindCluster().enforcing_policies():
        pytest.fail("policies are not enforced")


def pod(namespace: str, started: str | None) -> dict[str, Any]:
    state = {"running": {"startedAt": started}} if started else {"terminated": {}}
    return {
        "metadata": {"namespace": namespace, "name": "one"},
        "status": {"containerStatuses": [{"state": state}]},
    }


def test_pods_from_before_the_nodes_start_are_stale() -> None:
    started = datetime(2026, 1, 2, tzinfo=UTC)
    old, new = "2026-01-01T23:59:59Z", "2026-01-02T00:00:00Z"
    assert stale_pods([pod("postgres", old), pod("traefik", new), pod("userrealtime", None)], started) == [
        "postgres/one"
    ]
    assert stale_pods([pod("users", old)], started) == []


def test_traefik_has_one_version() -> None:
    assert f"\nFROM traefik:v{binaries.TRAEFIK}\n" in (REPOSITORY / images.TRAEFIK.dockerfile).read_text()
