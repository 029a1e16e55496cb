"""The interface of every kind of cluster.

The operations that a test needs (install an ingress controller, make an image available) are the same calls for each.
"""

import os
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from testing.patience import COMMAND_TIMEOUT_S

from . import tools
from .errors import ClusterError, UnknownError
from .paths import cache
from .process import port_forward, run

DEFAULT_INGRESS_PORT = 8081


@dataclass(frozen=True)
class Image:
    """An image that was built.

    Attributes:
        name: without registry and tag, `userrealtime-relay`.
        digest: twelve hexadecimal digits over everything it was made from. Its tag.
        archive: the OCI or Docker archive that holds it.
    """

    name: str
    digest: str
    archive: Path

    @property
    def local_reference(self) -> str:
        """The name inside the archive."""
        return f"localhost/{self.name}:{self.digest}"


class Provider(ABC):
    """A cluster. `up` and `down` may be called at any time, and again."""

    name: str
    sync_s = 60
    """The `syncFrequency` of the kubelets: pods have a changed Secret within 1.5 times this number of seconds."""

    @property
    @abstractmethod
    def kubeconfig(self) -> Path:
        """The kubeconfig file of an administrator. It exists once `up` has been called."""

    @property
    @abstractmethod
    def ingress_url(self) -> str:
        """The URL of the ingress controller from this machine, without a trailing slash."""

    def prepare(self) -> None:
        """Install and build what `up` needs, which is its slow part. Nothing is started. Errors as `up`."""
        self.kubectl_path()
        self.helm_path()

    @property
    def ip_version(self) -> int:
        """The primary family of the cluster's addresses: 4 or 6."""
        return 4

    @abstractmethod
    def up(self) -> None:
        """Make the cluster answer, with DNS and an ingress controller of the default class.

        Raises:
            ClusterError: it cannot; the text has advice.
        """

    @abstractmethod
    def down(self) -> None:
        """Stop and remove everything that `up` created, except caches."""

    @abstractmethod
    def status(self) -> str:
        """Return one line with the state of the cluster."""

    @abstractmethod
    def load_image(self, image: Image) -> str:
        """Make an image available to pods and return the reference to name in their specs.

        The reference ends in the image's content hash, and new content causes a new rollout. An image already
        there is not loaded again. Pods must not set `imagePullPolicy: Always`.
        """

    def load_images(self, images: Sequence[Image]) -> dict[str, str]:
        """Make images available as `load_image` does; the references that pods name, by image name."""
        return {image.name: self.load_image(image) for image in images}

    @abstractmethod
    def enforcing_policies(self) -> AbstractContextManager[None]:
        """NetworkPolicies are enforced while the block runs, and afterwards as they were before.

        Raises:
            ClusterError: they cannot be.
            UnknownError: the cluster does not enforce them, or gives no evidence of it.
        """

    def mirror(self, registry: str) -> AbstractContextManager[str]:
        """Return a context manager that gives an address (`host:port`) of this machine for a local registry.

        While the block runs, nodes pull the images of `registry` (`ghcr.io`) from this address, by plain HTTP.

        Raises:
            UnknownError: the nodes of this kind of cluster are not configured here.
        """
        raise UnknownError(f"the nodes of a cluster of the provider {self.name!r} pull from {registry} itself")

    def kubectl_path(self) -> Path:
        return tools.kubectl()

    def helm_path(self) -> Path:
        return tools.helm()

    def kubectl(self, *args: str, input: str | None = None, timeout: float = COMMAND_TIMEOUT_S) -> str:
        """Run kubectl against this cluster and return its output.

        Raises:
            ClusterError: with what kubectl wrote to stderr, or when `timeout` seconds have passed.
        """
        return run(self.kubectl_path(), *args, env=self.environment(), input=input, timeout=timeout)

    def helm(self, *args: str, input: str | None = None, timeout: float = 300) -> str:
        """Run helm against this cluster and return its output. Raises the errors of `kubectl`."""
        return run(self.helm_path(), *args, env=self.environment(), input=input, timeout=timeout)

    def apply(self, manifest: str, timeout: float = COMMAND_TIMEOUT_S) -> None:
        """Apply a YAML text with server-side apply."""
        arguments = ("apply", "--server-side", "--force-conflicts", "--field-manager=userrealtime-e2e", "-f", "-")
        self.kubectl(*arguments, input=manifest, timeout=timeout)

    def wait_rolled_out(self, namespace: str, workload: str, timeout: float = 180) -> None:
        """Wait until all pods of `workload` (`deployment/x`) are ready, at most `timeout` seconds.

        Raises:
            ClusterError: it has not; the namespace's pods and latest events are in the text.
        """
        try:
            self.kubectl(
                "-n", namespace, "rollout", "status", workload, f"--timeout={timeout:.0f}s", timeout=timeout + 15
            )
        except ClusterError as error:
            pods = self.kubectl("-n", namespace, "get", "pods", "-o", "wide")
            events = self.kubectl("-n", namespace, "get", "events", "--sort-by=.lastTimestamp")
            latest = "\n".join(events.splitlines()[-10:])
            raise ClusterError(f"{error}\n{pods}{latest}") from error

    def environment(self) -> dict[str, str]:
        """Return the environment with which kubectl and helm use this cluster, and write nothing to ~/.kube."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(cache("kubectl"))}

    def answers(self) -> bool:
        """Return whether the API server reports that it is ready."""
        try:
            return self.kubectl("get", "--raw", "/readyz", timeout=5).strip() == "ok"
        except ClusterError:
            return False

    def forward(self, namespace: str, target: str, port: int) -> AbstractContextManager[tuple[str, int]]:
        """Return a context manager that gives host and port of a connection to `port` of `target`.

        The host is written as in a URL: an IPv6 address has brackets.
        `target` is `svc/postgres` or `pod/x`. The connection is `kubectl port-forward`, unless the provider has a
        direct route.
        """
        return port_forward(self.kubectl_path(), self.environment(), namespace, target, port)


def chosen_port() -> int | None:
    """Return the ingress port from `INGRESS_PORT`; None if it is not set.

    Raises:
        ClusterError: it is not a port that an ordinary user may open.
    """
    text = os.environ.get("INGRESS_PORT", "")
    if not text:
        return None
    if not text.isdecimal() or not 1024 <= int(text) <= 65535:
        raise ClusterError(f"INGRESS_PORT={text} is not a port from 1024 to 65535")
    return int(text)


def port_problem(port: int) -> str:
    """Return why no server can listen on `port` of 127.0.0.1, with advice; empty if one can."""
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    if not taken:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                taken = True
    if not taken:
        return ""
    shown = f"ss -ltnp sport = :{port}" if sys.platform == "linux" else f"lsof -nP -iTCP:{port} -sTCP:LISTEN"
    return (
        f"port {port} of 127.0.0.1, which the ingress needs, is taken: stop the program that listens there "
        f"(`{shown}` shows it), or choose another port, for example: INGRESS_PORT={port + 1000} make up"
    )
