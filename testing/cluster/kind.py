"""A kind cluster, where a Docker engine answers.

The state is read from Docker: status and removal of a cluster do not need kind. Environment variables:

- `INGRESS_PORT`: the port of 127.0.0.1 for the ingress of a new cluster, 8081 by default;
- `KIND_NODE_IMAGE`: the node's image, for example a copy of kind's own in another registry.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from . import addons, binaries, docker, images, tools
from .errors import ClusterError, UnknownError
from .paths import cache
from .process import run, wait_http
from .progress import Step, exclusive, note, step
from .provider import DEFAULT_INGRESS_PORT, Image, Provider, chosen_port, port_problem

ON_LINUX = sys.platform == "linux"
CLUSTER = "userrealtime"
NODE = f"{CLUSTER}-control-plane"
# The image of kind 0.30.0, also for other versions of kind.
NODE_IMAGE = "kindest/node:v1.34.0@sha256:7416a61b42b1662ca6ca89f02028ac133a309a2a30ba309614e8ec94d976dc5a"
# A file in the node, which is written after kind has finished.
COMPLETE = "/etc/userrealtime-complete"
# The namespaces of the pods that an installation needs.
OWN_NAMESPACES = ("kube-system", "traefik", "postgres", "userrealtime")
START_LIMIT = 120.0
RESTART_LIMIT = 180.0
NO_ENFORCER = "the log of kind's network plugin shows nothing that enforces NetworkPolicies in this cluster"
NOT_ENFORCED = (
    "kind's network plugin reports that this kernel rejects its nftables rules (probably it has no "
    "CONFIG_NFT_QUEUE): NetworkPolicies are not enforced on this machine"
)


def node() -> dict[str, Any] | None:
    """Return the output of `docker inspect` for the node's container; None if it does not exist."""
    command = ["docker", "container", "inspect", NODE]
    done = subprocess.run(command, env=docker.environment(), capture_output=True, text=True, timeout=60)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found
    if "no such container" in done.stderr.lower():
        return None
    raise ClusterError(f"`docker container inspect {NODE}` failed: {done.stderr.strip()}")


class KindCluster(Provider):
    name = "kind"

    @property
    def kubeconfig(self) -> Path:
        return cache("kind", "kubeconfig")

    @property
    def ingress_url(self) -> str:
        return f"http://127.0.0.1:{self._port(node() if docker.answers() else None)}"

    def kubectl_path(self) -> Path:
        # The node's kubectl is a Linux program for this machine's processor.
        return tools.kubectl_of_node(NODE, node_image()) if ON_LINUX else tools.kubectl()

    def prepare(self) -> None:
        with exclusive("kind"):
            self._prepare()
            self._images()
        if ON_LINUX and shutil.which("go"):
            # For the tests that start a separate API server.
            binaries.hyperkube()
        else:
            note("e2e/test_activator.py and e2e/test_leader.py need Linux and Go: they build an API server")

    def up(self) -> None:
        with exclusive("kind"):
            self._up()

    def down(self) -> None:
        with exclusive("kind"):
            if node() is None:
                note("no kind cluster of this project")
                return
            with step("deleting the kind cluster") as current:
                self._delete(current)

    def status(self) -> str:
        there = node()
        if there is None:
            return "kind: not running"
        if (state := there["State"]["Status"]) != "running":
            return f"kind: the node's container is {state}; `make up` starts it"
        return f"kind: API server {'answers' if self.answers() else 'does not answer'}, ingress at {self.ingress_url}"

    def load_image(self, image: Image) -> str:
        return self.load_images([image])[image.name]

    def load_images(self, images: Sequence[Image]) -> dict[str, str]:
        there = run("docker", "exec", NODE, "ctr", "-n", "k8s.io", "images", "list", "--quiet", timeout=60).split()
        if missing := [image for image in images if image.local_reference not in there]:
            names = ", ".join(image.name.removeprefix("userrealtime-") for image in missing)
            with step(f"loading images: {names}", usual="10 s each") as current:
                if not _load_together(current, missing):
                    _load_each(current, missing)
        return {image.name: image.local_reference for image in images}

    @contextmanager
    def enforcing_policies(self) -> Iterator[None]:
        """Check in its log that kind's network plugin enforces policies: some kernels reject its rules."""
        log = self.kubectl("-n", "kube-system", "logs", "--selector=app=kindnet", "--tail=-1")
        if "syncing nftables rules" not in log.lower():
            raise UnknownError(NO_ENFORCER)
        if refused_rules(log):
            raise UnknownError(NOT_ENFORCED)
        yield

    def _prepare(self) -> None:
        """Check everything and obtain all tools, before anything is created."""
        problems = docker.problems()
        there = node()
        port = self._port(there)
        if there is None and (problem := port_problem(port)):
            problems.append(problem)
        if chosen_port() not in (None, port):
            problems.append(
                f"the cluster that is there has its ingress at port {port}: `make down` first, or unset INGRESS_PORT"
            )
        getters: list[Callable[[], object]] = [tools.kind, tools.helm, binaries.gateway_api]
        # The node has a kubectl that runs here.
        if not ON_LINUX:
            getters.append(tools.kubectl)
        tools.obtain(*getters, problems=problems)

    def _images(self) -> list[Image]:
        return images.build([images.TRAEFIK])

    def _up(self) -> None:
        self._prepare()
        # Before the cluster: an unreachable registry is reported first.
        traefik = self._images()
        there = node()
        if there is not None and there["State"]["Status"] != "running":
            with step("starting the kind node again") as current:
                paused = there["State"]["Status"] == "paused"
                current.run(
                    ["docker", "unpause" if paused else "start", NODE], env=docker.environment(), timeout=START_LIMIT
                )
        if there is not None and not self._complete():
            with step("deleting a kind cluster that was not finished") as current:
                self._delete(current)
            there = None
        if there is None:
            self._create()
        else:
            self._export_kubeconfig()
        self._wait_ready()
        [reference] = self.load_images(traefik).values()
        addons.apply_ingress(self, reference)
        wait_http(self.ingress_url, timeout=60)
        note(f"kind cluster ready; KUBECONFIG={self.kubeconfig}, ingress at {self.ingress_url}")

    def _create(self) -> None:
        path = cache("kind", "config.json")
        path.write_text(json.dumps(config(self._port(None))))
        with step("creating a kind cluster", usual="1 to 3 min, the download of its image beside") as current:
            options = (f"--name={CLUSTER}", f"--config={path}", f"--kubeconfig={self.kubeconfig}", "--wait=120s")
            current.run([tools.kind(), "create", "cluster", *options], env=docker.environment(), timeout=1800)
            current.run(["docker", "exec", NODE, "touch", COMPLETE], env=docker.environment(), timeout=60)

    def _delete(self, current: Step) -> None:
        # The same command as kind's; kind would also change a kubeconfig in the home directory.
        current.run(["docker", "rm", "--force", "--volumes", NODE], env=docker.environment(), timeout=300)
        self.kubeconfig.unlink(missing_ok=True)

    def _complete(self) -> bool:
        command = ["docker", "exec", NODE, "test", "-e", COMPLETE]
        return subprocess.run(command, env=docker.environment(), capture_output=True, timeout=60).returncode == 0

    def _export_kubeconfig(self) -> None:
        options = (f"--name={CLUSTER}", f"--kubeconfig={self.kubeconfig}")
        run(tools.kind(), "export", "kubeconfig", *options, env=docker.environment(), timeout=60)

    def _wait_ready(self) -> None:
        """Wait for the API server, and, after a restart of the node, for the restart of its pods."""
        if self.answers() and not self._stale():
            return
        with step(
            "waiting for Kubernetes", usual="under a minute", hint=f"`docker logs {NODE}` shows the node's start"
        ):
            _until(self.answers, lambda: "the API server does not answer", START_LIMIT)
            _until(lambda: not self._stale(), lambda: f"not started again: {', '.join(self._stale())}", RESTART_LIMIT)

    def _stale(self) -> list[str]:
        """Return the needed pods whose status is older than the node's last start; `namespace/name`."""
        there = node()
        if there is None:
            raise ClusterError("the kind node is not there any more")
        started = instant(there["State"]["StartedAt"])
        try:
            pods = json.loads(self.kubectl("get", "pods", "--all-namespaces", "-o", "json", timeout=20))["items"]
        except ClusterError:
            return ["all pods: the API server does not answer"]
        return stale_pods(pods, started)

    def _port(self, there: dict[str, Any] | None) -> int:
        """Return the port of the ingress: the node's, or the one for a new node."""
        if there is not None:
            bindings = there["HostConfig"].get("PortBindings") or {}
            if published := bindings.get(f"{addons.INGRESS_NODE_PORT}/tcp"):
                return int(published[0]["HostPort"])
        return chosen_port() or DEFAULT_INGRESS_PORT


def node_image() -> str:
    """Return the image for a new node."""
    return os.environ.get("KIND_NODE_IMAGE") or NODE_IMAGE


def config(port: int) -> dict[str, Any]:
    """Return kind's configuration of the cluster, with the ingress at `port`."""
    mapping = {"containerPort": addons.INGRESS_NODE_PORT, "hostPort": port, "listenAddress": "127.0.0.1"}
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "nodes": [{"role": "control-plane", "image": node_image(), "extraPortMappings": [mapping]}],
    }


def instant(text: str) -> datetime:
    """Parse an RFC 3339 time of Docker or Kubernetes, to the second."""
    return datetime.fromisoformat(re.sub(r"(\.\d+)?Z$", "+00:00", text))


def stale_pods(pods: Sequence[dict[str, Any]], started: datetime) -> list[str]:
    """Return the needed pods with a container that started before `started`; `namespace/name`."""
    found = []
    for pod in pods:
        metadata, status = pod["metadata"], pod.get("status", {})
        if metadata["namespace"] not in OWN_NAMESPACES or "deletionTimestamp" in metadata:
            continue
        states = [container["state"] for container in status.get("containerStatuses", [])]
        if any(instant(state["running"]["startedAt"]) < started for state in states if "running" in state):
            found.append(f"{metadata['namespace']}/{metadata['name']}")
    return found


def refused_rules(log: str) -> bool:
    """Return whether the log of kind's network plugin reports that the kernel rejected its rules."""
    lines = log.splitlines()
    return any(
        re.search(r"error syncing nftables rules|\"syncing nftables rules\".*\b(err|error)=", line, re.IGNORECASE)
        for line in lines
    )


def _load_together(current: Step, images: Sequence[Image]) -> bool:
    """Load images from one archive, which contains shared layers once; return whether that succeeded.

    It fails if the engine no longer has all of the images.
    """
    if len(images) == 1:
        return False
    references = [image.local_reference for image in images]
    with tempfile.TemporaryDirectory(dir=images[0].archive.parent) as directory:
        archive = Path(directory, "images.tar")
        try:
            current.run(["docker", "save", "--output", archive, *references], env=docker.environment(), timeout=600)
            _load(current, archive)
        except ClusterError:
            return False
    return True


def _load_each(current: Step, images: Sequence[Image]) -> None:
    for image in images:
        _load(current, image.archive)


def _load(current: Step, archive: Path) -> None:
    command: list[str | Path] = [tools.kind(), "load", "image-archive", archive, f"--name={CLUSTER}"]
    current.run(command, env=docker.environment(), timeout=600)


def _until(condition: Callable[[], bool], problem: Callable[[], str], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"after {timeout:.0f} s: {problem()}")
        time.sleep(0.5)
