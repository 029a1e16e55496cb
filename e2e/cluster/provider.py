"""What every cluster offers, whoever runs it.

`choose` takes, in this order: the cluster of a given `KUBECONFIG`; an existing cluster of this project on this machine;
kind, if a Docker engine answers; a one-node Kubernetes built from Go modules, on Linux as root. What a provider does
beyond that (install an ingress controller, make an image available) is the same call for all three.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.patience import COMMAND_TIMEOUT_S

from . import tools
from .errors import ClusterError
from .paths import cache

NOTHING_POSSIBLE = """this machine has nothing to run a cluster with. Any one of these is enough:
  - start a Docker engine (https://docs.docker.com/engine/install/): a kind cluster is created in it;
  - set KUBECONFIG to the kubeconfig file of a cluster that may be used for tests;
  - on Linux, run as root: a one-node Kubernetes is built with Go 1.24 or later (https://go.dev/dl/)."""

DEFAULT_INGRESS_PORT = 8081
PORT_FORWARD_LIMIT = 60.0


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

    @property
    @abstractmethod
    def kubeconfig(self) -> Path:
        """The kubeconfig file of an administrator. It exists once `up` has been called."""

    @property
    @abstractmethod
    def ingress_url(self) -> str:
        """Where the ingress controller answers from this machine, without a slash at the end."""

    def prepare(self) -> None:
        """The slow part of `up` alone: install and build what it needs. Nothing is started. Errors as `up`."""
        self.kubectl_path()
        self.helm_path()

    @abstractmethod
    def up(self) -> None:
        """Make the cluster answer, with DNS and an ingress controller of the default class.

        Raises:
            ClusterError: it cannot; the text says what to do.
        """

    @abstractmethod
    def down(self) -> None:
        """End and remove all that `up` made, and nothing else. Caches stay."""

    @abstractmethod
    def status(self) -> str:
        """One line: whether the cluster answers."""

    @abstractmethod
    def load_image(self, image: Image) -> str:
        """Make an image available to pods and return the reference to name in their specs.

        The reference ends in the image's content hash, so that new content means a new rollout. An image already
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

    def kubectl_path(self) -> Path:
        return tools.kubectl()

    def helm_path(self) -> Path:
        return tools.helm()

    def kubectl(self, *args: str, input: str | None = None, timeout: float = COMMAND_TIMEOUT_S) -> str:
        """Run kubectl against this cluster; its output.

        Raises:
            ClusterError: with what kubectl wrote to stderr, or when `timeout` seconds have passed.
        """
        return run(self.kubectl_path(), *args, env=self.environment(), input=input, timeout=timeout)

    def helm(self, *args: str, input: str | None = None, timeout: float = 300) -> str:
        """Run helm against this cluster; its output. Errors as `kubectl`."""
        return run(self.helm_path(), *args, env=self.environment(), input=input, timeout=timeout)

    def apply(self, manifest: str, timeout: float = COMMAND_TIMEOUT_S) -> None:
        """Server-side apply of a YAML text."""
        arguments = ("apply", "--server-side", "--force-conflicts", "--field-manager=userrealtime-e2e", "-f", "-")
        self.kubectl(*arguments, input=manifest, timeout=timeout)

    def wait_rolled_out(self, namespace: str, workload: str, timeout: float = 180) -> None:
        """Until `workload` (`deployment/x`) has all its pods ready; at most `timeout` seconds.

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
        """The environment under which kubectl and helm mean this cluster, and write nothing to ~/.kube."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(cache("kubectl"))}

    def answers(self) -> bool:
        """Whether the API server says it is ready."""
        try:
            return self.kubectl("get", "--raw", "/readyz", timeout=5).strip() == "ok"
        except ClusterError:
            return False

    def forward(self, namespace: str, target: str, port: int) -> AbstractContextManager[tuple[str, int]]:
        """A way from this machine to `port` of `target` (`svc/postgres`, `pod/x`), while the block runs.

        Gives host and port. Through `kubectl port-forward` unless the provider knows a shorter way.
        """
        return port_forward(self, namespace, target, port)


@contextmanager
def port_forward(cluster: Provider, namespace: str, target: str, port: int) -> Iterator[tuple[str, int]]:
    """`kubectl port-forward` for the length of the block, on a free port of 127.0.0.1."""
    command = [str(cluster.kubectl_path()), "-n", namespace, "port-forward", "--address=127.0.0.1", target, f":{port}"]
    with subprocess.Popen(
        command, env=cluster.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield "127.0.0.1", _forwarded_port(process)
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()


def _forwarded_port(process: "subprocess.Popen[str]") -> int:
    # kubectl itself gives up on a pod that is not there; the alarm is for one that says nothing at all.
    alarm = threading.Timer(PORT_FORWARD_LIMIT, process.kill)
    alarm.start()
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
    finally:
        alarm.cancel()
    prefix = "Forwarding from 127.0.0.1:"
    if not first.startswith(prefix):
        raise ClusterError(f"kubectl port-forward: {first.strip() or f'said nothing for {PORT_FORWARD_LIMIT:.0f} s'}")
    return int(first.removeprefix(prefix).split(" ")[0])


def choose() -> Provider:
    """Return the cluster to use; the module's docstring has the order.

    Raises:
        ClusterError: no cluster is possible; the message has advice.
    """
    from . import engine
    from .existing import ExistingCluster
    from .kind import KindCluster
    from .local import LocalCluster

    if given := os.environ.get("KUBECONFIG"):
        # `python -m e2e.cluster env` sets it to one of ours, which stays ours.
        ours: list[Provider] = [KindCluster(), LocalCluster()]
        return next((own for own in ours if own.kubeconfig == Path(given)), ExistingCluster(Path(given)))
    if there := present():
        return there[0]
    if engine.docker_answers():
        return KindCluster()
    if _local_possible():
        return LocalCluster()
    docker = engine.unusable() if shutil.which("docker") else ""
    raise ClusterError(f"{NOTHING_POSSIBLE}\n  {docker}".rstrip())


def present() -> list[Provider]:
    """Return the project's clusters on this machine, running or stopped; the first is preferred."""
    from . import engine
    from .kind import KindCluster, node
    from .local import LocalCluster
    from .local.leftovers import leftovers

    found: list[Provider] = []
    if engine.docker_answers() and node() is not None:
        found.append(KindCluster())
    if _local_possible() and leftovers():
        found.append(LocalCluster())
    return found


def removable() -> list[Provider]:
    """Return the clusters for `down`: the one of `KUBECONFIG`, or else all of `present`.

    Raises:
        ClusterError: there is none, and none is possible.
    """
    return [choose()] if os.environ.get("KUBECONFIG") else present() or [choose()]


def _local_possible() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0


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


def run(
    program: Path | str, *args: str, env: dict[str, str] | None = None, input: str | None = None, timeout: float
) -> str:
    """Run a program to its end; its standard output.

    Raises:
        ClusterError: it failed (with its standard error), is not there, or ran longer than `timeout` seconds.
    """
    name = Path(program).name
    shown = " ".join([name, *args[:6]])
    try:
        done = subprocess.run(
            [program, *args],
            env=env,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except FileNotFoundError:
        raise ClusterError(f"{name} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{shown}` took longer than {timeout:.0f} s") from None
    if done.returncode != 0:
        raise ClusterError(f"`{shown}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def wait_http(url: str, timeout: float) -> None:
    """Until something answers HTTP at `url` (whatever it says); at most `timeout` seconds."""
    host, _, port = url.removeprefix("http://").split("/")[0].partition(":")
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((host, int(port or 80)), timeout=2) as connection:
                connection.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                if connection.recv(5) == b"HTTP/":
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise ClusterError(f"{url} does not answer after {timeout:.0f} s")
        time.sleep(0.2)
