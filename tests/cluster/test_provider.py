import socket
import threading
from pathlib import Path

import pytest

from testing.cluster import docker, kind, postgres, process
from testing.cluster.errors import ClusterError, UnknownError
from testing.cluster.existing import ExistingCluster
from testing.cluster.kind import KindCluster
from testing.cluster.local import LocalCluster, leftovers
from testing.cluster.process import run, wait_http
from testing.cluster.provider import Image, chosen_port, port_problem
from testing.cluster.selection import choose, removable
from testing.patience import PATIENCE_S


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with neither KUBECONFIG nor Docker nor a cluster, and a user other than root."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(docker, "answers", lambda: False)
    monkeypatch.setattr(kind, "node", lambda: None)
    monkeypatch.setattr(leftovers, "leftovers", list)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    return monkeypatch


def test_a_given_kubeconfig_comes_first(machine: pytest.MonkeyPatch, cache_directory: Path) -> None:
    machine.setenv("KUBECONFIG", "/some/config")
    machine.setattr(docker, "answers", lambda: True)
    machine.setattr(kind, "node", dict)
    chosen = choose()
    assert isinstance(chosen, ExistingCluster)
    assert chosen.environment()["KUBECONFIG"] == "/some/config"
    assert chosen.environment()["KUBECACHEDIR"] == str(cache_directory / "kubectl")


def test_then_docker(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(docker, "answers", lambda: True)
    machine.setattr("os.geteuid", lambda: 0)
    assert isinstance(choose(), KindCluster)


def test_then_root_on_linux(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("os.geteuid", lambda: 0)
    machine.setattr("sys.platform", "linux")
    assert isinstance(choose(), LocalCluster)


def test_else_it_says_what_to_install(machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match="Docker engine") as caught:
        choose()
    assert "KUBECONFIG" in str(caught.value)
    assert "Go 1.24" in str(caught.value)


def test_our_own_kubeconfig_is_no_foreign_cluster(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("KUBECONFIG", str(LocalCluster().kubeconfig))
    assert isinstance(choose(), LocalCluster)
    machine.setenv("KUBECONFIG", str(KindCluster().kubeconfig))
    assert isinstance(choose(), KindCluster)


def test_an_existing_cluster_says_what_it_needs(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.delenv("INGRESS_URL", raising=False)
    machine.delenv("IMAGE_REGISTRY", raising=False)
    cluster = ExistingCluster(tmp_path / "config")
    with pytest.raises(ClusterError, match="INGRESS_URL"):
        cluster.up()
    with pytest.raises(ClusterError, match="IMAGE_REGISTRY"):
        cluster.load_image(Image("thing", "0123", tmp_path / "archive"))


def test_a_cluster_that_is_there_comes_before_a_new_one(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("os.geteuid", lambda: 0)
    machine.setattr("sys.platform", "linux")
    machine.setattr(leftovers, "leftovers", lambda: ["process 1"])
    # Docker was started after the local cluster.
    machine.setattr(docker, "answers", lambda: True)
    assert isinstance(choose(), LocalCluster)
    assert [cluster.name for cluster in removable()] == ["local"]
    machine.setattr(kind, "node", dict)
    assert isinstance(choose(), KindCluster)
    assert [cluster.name for cluster in removable()] == ["kind", "local"]


def test_where_none_is_there_the_possible_one_is_asked(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(docker, "answers", lambda: True)
    assert [cluster.name for cluster in removable()] == ["kind"]
    machine.setenv("KUBECONFIG", "/some/config")
    assert [cluster.name for cluster in removable()] == ["existing"]


def test_why_docker_cannot_be_used_is_part_of_the_message(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho permission denied while trying to connect >&2; exit 1\n")
    docker.chmod(0o755)
    machine.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="usermod -aG docker"):
        choose()


@pytest.mark.parametrize(("text", "port"), [("", None), ("9081", 9081)])
def test_the_port_can_be_chosen(machine: pytest.MonkeyPatch, text: str, port: int | None) -> None:
    machine.setenv("INGRESS_PORT", text)
    assert chosen_port() == port


@pytest.mark.parametrize("text", ["80", "65536", "-9081", "many"])
def test_a_port_that_no_user_may_open_is_refused(machine: pytest.MonkeyPatch, text: str) -> None:
    machine.setenv("INGRESS_PORT", text)
    with pytest.raises(ClusterError, match="INGRESS_PORT"):
        chosen_port()


def test_a_taken_port_is_reported_with_advice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"INGRESS_PORT={port + 1000} make up" in port_problem(port)
    assert port_problem(port) == ""


def test_a_bound_port_is_taken_without_a_listener() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert port_problem(bound.getsockname()[1])


def test_run_gives_output_and_says_why_it_failed() -> None:
    assert run("sh", "-c", "cat", input="text", timeout=10) == "text"
    with pytest.raises(ClusterError, match=r"`sh -c .*` failed: broken"):
        run("sh", "-c", "echo broken >&2; exit 1", timeout=10)
    with pytest.raises(ClusterError, match="no-such-program is not installed"):
        run("no-such-program", timeout=10)
    with pytest.raises(ClusterError, match="took longer than"):
        run("sleep", "60", timeout=0.1)


def test_wait_http_is_content_with_any_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        wait_http(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=10)
        thread.join(timeout=PATIENCE_S)


def test_wait_http_gives_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ClusterError, match="does not answer"):
        wait_http(f"http://127.0.0.1:{port}", timeout=0)


class FakeKubectl(ExistingCluster):
    """A cluster whose kubectl is a shell script."""

    def __init__(self, directory: Path, script: str) -> None:
        super().__init__(directory / "config")
        self.program = directory / "kubectl"
        self.program.write_text(f"#!/bin/sh\n{script}\n")
        self.program.chmod(0o755)

    def kubectl_path(self) -> Path:
        return self.program


def test_port_forward_lasts_as_long_as_the_block(tmp_path: Path) -> None:
    script = f'echo $$ > {tmp_path}/pid; echo "Forwarding from 127.0.0.1:4711 -> 80"; exec sleep 60'
    with FakeKubectl(tmp_path, script).forward("default", "svc/x", 80) as address:
        pid = int((tmp_path / "pid").read_text())
        assert Path(f"/proc/{pid}").exists()
        assert address == ("127.0.0.1", 4711)
    assert not Path(f"/proc/{pid}").exists()


def test_port_forward_passes_on_what_kubectl_says(tmp_path: Path) -> None:
    cluster = FakeKubectl(tmp_path, "echo 'error: services \"x\" not found' >&2; exit 1")
    with pytest.raises(ClusterError, match='services "x" not found'), cluster.forward("default", "svc/x", 80):
        pytest.fail("there is nothing to forward to")


def test_port_forward_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PORT_FORWARD_LIMIT", 0.2)
    cluster = FakeKubectl(tmp_path, "exec sleep 60")
    with pytest.raises(ClusterError, match="no output"), cluster.forward("default", "svc/x", 80):
        pytest.fail("nothing was forwarded")


def test_somebody_elses_namespace_is_left_alone(tmp_path: Path) -> None:
    script = f"""echo "$@" >> {tmp_path}/calls; echo '{{"metadata": {{"labels": {{}}}}}}'"""
    cluster = FakeKubectl(tmp_path, script)
    with pytest.raises(ClusterError, match="not ours"):
        postgres.deploy(cluster, "image")
    postgres.remove(cluster)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2
    assert all(call.startswith("get namespace postgres") for call in calls)


def test_a_foreign_clusters_policies_are_not_taken_for_enforced() -> None:
    with pytest.raises(UnknownError, match="NetworkPolicies"):
        ExistingCluster(Path("/some/config")).enforcing_policies()
