"""A kind cluster, where a Docker engine answers.

Exercised only on such machines; kept to the few commands that kind documents.
"""

import json
import shutil
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from . import addons, binaries
from .errors import ClusterError
from .paths import cache
from .progress import note, step
from .provider import INGRESS_PORT, Image, Provider, run, wait_http

CLUSTER = "userrealtime"
INSTALL_KIND = (
    f"kind is not installed: `go install sigs.k8s.io/kind@v{binaries.KIND}`, "
    "or see https://kind.sigs.k8s.io/docs/user/quick-start/"
)


def docker_answers() -> bool:
    """Whether a Docker engine answers within 10 seconds."""
    if shutil.which("docker") is None:
        return False
    try:
        return subprocess.run(["docker", "version"], capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


class KindCluster(Provider):
    name = "kind"

    @property
    def kubeconfig(self) -> Path:
        return cache("kind", "kubeconfig")

    @property
    def ingress_url(self) -> str:
        return f"http://127.0.0.1:{INGRESS_PORT}"

    def up(self) -> None:
        if CLUSTER not in self._clusters():
            mapping = {
                "containerPort": addons.INGRESS_NODE_PORT,
                "hostPort": INGRESS_PORT,
                "listenAddress": "127.0.0.1",
            }
            config = {
                "kind": "Cluster",
                "apiVersion": "kind.x-k8s.io/v1alpha4",
                "nodes": [{"role": "control-plane", "extraPortMappings": [mapping]}],
            }
            path = cache("kind", "config.json")
            path.write_text(json.dumps(config))
            with step("creating a kind cluster", usual="1 to 3 min") as current:
                options = (f"--name={CLUSTER}", f"--config={path}", f"--kubeconfig={self.kubeconfig}", "--wait=120s")
                current.run([_kind(), "create", "cluster", *options], timeout=600)
        else:
            run(_kind(), "export", "kubeconfig", f"--name={CLUSTER}", f"--kubeconfig={self.kubeconfig}", timeout=60)
        addons.apply_ingress(self, addons.TRAEFIK_OFFICIAL)
        wait_http(self.ingress_url, timeout=60)
        note(f"kind cluster ready; KUBECONFIG={self.kubeconfig}, ingress at {self.ingress_url}")

    def down(self) -> None:
        if CLUSTER not in self._clusters():
            note("no kind cluster of this project")
            return
        with step("deleting the kind cluster") as current:
            current.run([_kind(), "delete", "cluster", f"--name={CLUSTER}"], timeout=300)
        self.kubeconfig.unlink(missing_ok=True)

    def status(self) -> str:
        if CLUSTER not in self._clusters():
            return "kind: not running"
        return f"kind: API server {'answers' if self.answers() else 'does not answer'}, ingress at {self.ingress_url}"

    def load_image(self, image: Image) -> str:
        node = f"{CLUSTER}-control-plane"
        there = run("docker", "exec", node, "ctr", "-n", "k8s.io", "images", "list", "--quiet", timeout=60)
        if image.local_reference not in there.split():
            with step(f"loading {image.name}") as current:
                current.run([_kind(), "load", "image-archive", image.archive, f"--name={CLUSTER}"], timeout=600)
        return image.local_reference

    def enforcing_policies(self) -> AbstractContextManager[None]:
        """kind's own network plugin enforces them, always."""
        return nullcontext()

    def _clusters(self) -> list[str]:
        return run(_kind(), "get", "clusters", timeout=60).split()


def _kind() -> Path:
    found = shutil.which("kind")
    if found is None:
        raise ClusterError(INSTALL_KIND)
    return Path(found)
