"""The provider for the local cluster; the package's docstring describes the design."""

import contextlib
import hashlib
import ipaddress
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from testing.cluster import addons, binaries, oci, tools
from testing.cluster.errors import ClusterError
from testing.cluster.paths import REPOSITORY, STATE, cache
from testing.cluster.process import run, wait_http
from testing.cluster.progress import exclusive, note, step
from testing.cluster.provider import DEFAULT_INGRESS_PORT, Image, Provider, chosen_port, port_problem

from . import packages, pki, policies
from .addresses import DEFAULT, VARIABLE, Addresses, Family, chosen, url_host
from .components import (
    CGROUP,
    CLIENTS,
    CONTAINERD_SOCKET,
    CPU_WEIGHTS,
    INTERFACE,
    KUBERNETES,
    MIRRORS,
    NODE,
    PAUSE_IMAGE,
    PKI,
    SYNC_S,
    SYSTEM_CGROUP,
    NodeSpec,
    files,
    identities,
    mirror_toml,
    node_spec,
)
from .leftovers import NODE_MODULE, cgroup_roots, cgroups, leftovers, processes

RECORD = STATE / "node.json"
SPEC = STATE / "spec.json"
LIB = STATE / "lib"
LOG = STATE / "log"
NODE_LIMIT = 30.0
READY_LIMIT = 120.0
DOWN_LIMIT = 30.0
ENDPOINT_LIMIT = 10.0


class LocalCluster(Provider):
    name = "local"
    sync_s = SYNC_S

    @property
    def kubeconfig(self) -> Path:
        return STATE / "kubeconfig"

    @property
    def ingress_url(self) -> str:
        return f"http://127.0.0.1:{_port()}"

    @property
    def ip_version(self) -> int:
        return _addresses().primary.version

    def kubectl_path(self) -> Path:
        return binaries.kubectl()

    def helm_path(self) -> Path:
        return binaries.helm()

    def environment(self) -> dict[str, str]:
        """The environment of any provider, without a proxy for connections to the node."""
        environment = super().environment()
        ranges = [each for family in _addresses().families for each in (family.link, family.pods, family.services)]
        direct = ["127.0.0.1", "localhost", *ranges]
        for name in ("NO_PROXY", "no_proxy"):
            environment[name] = ",".join([*filter(None, [environment.get(name)]), *direct])
        return environment

    def prepare(self) -> None:
        with exclusive("local"):
            self._prepare()

    def up(self) -> None:
        with exclusive("local"):
            self._up()

    def down(self) -> None:
        with exclusive("local"):
            self._down()

    def _prepare(self) -> list[tuple[str, Path]]:
        """Build all programs and images; return the static images by reference.

        Raises:
            ClusterError: a prerequisite is missing or conflicts; the text lists all problems.
        """
        _check()
        packages.ensure()
        binaries.hyperkube()
        binaries.forward()
        super().prepare()
        return [
            _static_image(PAUSE_IMAGE, binaries.pause()),
            _static_image(addons.COREDNS_IMAGE, binaries.coredns()),
            _static_image(addons.TRAEFIK_IMAGE, binaries.traefik()),
        ]

    def _up(self) -> None:
        images = self._prepare()
        programs = binaries.hyperkube(), binaries.forward()
        spec = node_spec(STATE, *programs, addons.INGRESS_NODE_PORT, _addresses())
        self._write_state(spec)
        self._start_node(spec)
        self._wait_ready()
        for reference, archive in images:
            self._import(reference, archive)
        addons.apply_dns(self, _addresses().primary.dns_service)
        addons.apply_ingress(self, addons.TRAEFIK_IMAGE)
        wait_http(self.ingress_url, timeout=60)
        note(f"local cluster ready; KUBECONFIG={self.kubeconfig}, ingress at {self.ingress_url}")

    def _down(self) -> None:
        if not leftovers():
            note("no local cluster on this machine")
            return
        with step("removing the local cluster"):
            _end_node()
            shutil.rmtree(STATE, ignore_errors=True)
            if remains := leftovers():
                raise ClusterError("this stayed behind:\n  " + "\n  ".join(remains))
        note(f"nothing left; {cache()} keeps what was built (`python -m testing.cluster clean` removes it)")

    def status(self) -> str:
        node = _node()
        if node is None:
            return "local: not running"
        state = "answers" if self.answers() else f"does not answer, logs in {LOG}"
        return f"local: node is process {node}, API server {state}, ingress at {self.ingress_url}"

    def load_image(self, image: Image) -> str:
        self._import(image.local_reference, image.archive)
        # The name for humans; specs contain the hash.
        self._ctr("images", "tag", "--force", image.local_reference, f"localhost/{image.name}:dev")
        return image.local_reference

    @contextmanager
    def forward(self, namespace: str, target: str, port: int) -> Iterator[tuple[str, int]]:
        """Yield the address of the target: this machine has routes to pods and Services.

        kube-proxy connects a Service to a new pod some time after the pod is ready. `kubectl port-forward` would not
        wait for it, so this method does.
        """
        kind, _, name = target.partition("/")
        is_pod = kind in ("pod", "pods")
        path = "{.status.podIP}" if is_pod else "{.spec.clusterIP}"
        address = self.kubectl("-n", namespace, "get", kind, name, "-o", f"jsonpath={path}").strip()
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ClusterError(f"{namespace}/{target} has no address yet") from None
        if not is_pod:
            with contextlib.suppress(ClusterError):  # the caller gets the error of its own connection
                _until(partial(_accepts, address, port), f"{namespace}/{target} to accept connections", ENDPOINT_LIMIT)
        yield url_host(address), port

    @contextmanager
    def enforcing_policies(self) -> Iterator[None]:
        packages.ensure(policies.PROGRAMS)
        program = binaries.netpol()
        kubeconfig = f"{KUBERNETES}/admin.kubeconfig"
        _write_kubeconfig(_on_host(kubeconfig), _on_host(str(PKI)), "admin")
        in_node = [*self._in_node(), f"--pid=/proc/{_node()}/ns/pid_for_children"]
        with policies.enforced(in_node, program, kubeconfig, _addresses().services, LOG / "netpol.log"):
            yield

    @contextmanager
    def mirror(self, registry: str) -> Iterator[str]:
        """Yield an address of this machine's end of the link, which only the node reaches."""
        host = _addresses().primary.host
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
            address = f"{url_host(host)}:{probe.getsockname()[1]}"
        folder = _on_host(str(MIRRORS / registry))
        _write(folder / "hosts.toml", mirror_toml(address))
        try:
            yield address
        finally:
            shutil.rmtree(folder)

    def _write_state(self, spec: NodeSpec) -> None:
        LOG.mkdir(parents=True, exist_ok=True)
        STATE.chmod(0o700)
        secrets = _on_host("/var/lib/kubernetes/pki")
        if not (secrets / "front-proxy.crt").exists():
            with step("making certificates"):
                # As on Amazon EKS. Whatever accepts this authority accepts a complete one as well, so every test on
                # this cluster proves more than it would with the latter; kind's authority is complete.
                pki.make(secrets, identities(_addresses()), pki.Extensions.MINIMAL)
        for path, content in files(packages.cni_binaries(), _addresses()).items():
            _write(_on_host(path), content)
        for client in CLIENTS:
            _write_kubeconfig(_on_host(f"/var/lib/kubernetes/{client}.kubeconfig"), secrets, client)
        _write_kubeconfig(self.kubeconfig, secrets, "admin")
        _write(SPEC, spec.to_json())

    def _start_node(self, spec: NodeSpec) -> None:
        """Start the node unless one with the same specification runs."""
        configuration = json.dumps(files(packages.cni_binaries(), _addresses()))
        version = hashlib.sha256((spec.to_json() + configuration).encode()).hexdigest()
        node = _node()
        if node is not None:
            if json.loads(RECORD.read_text())["version"] == version:
                return
            note("the node's configuration has changed: it is restarted")
        _end_node()
        with step("starting the node"), _ingress_socket() as listener:
            for family in _addresses().families:
                _refuse_overlapping_routes(family)
            _make_cgroups()
            _spawn_node(listener, version, _port())

    def _wait_ready(self) -> None:
        if self.answers() and self._node_ready():
            return
        with step("waiting for Kubernetes", usual="10 s", hint=f"the components' logs are in {LOG}"):
            _until(self._answers_or_ended, "the API server", READY_LIMIT)
            _until(self._node_ready, "the node to be Ready", READY_LIMIT)

    def _answers_or_ended(self) -> bool:
        if _node() is None:
            raise ClusterError(f"the node has ended; {LOG / 'node.log'} says why")
        return self.answers()

    def _node_ready(self) -> bool:
        ready = '{.status.conditions[?(@.type=="Ready")].status}'
        try:
            return self.kubectl("get", "node", NODE, "-o", f"jsonpath={ready}", timeout=10) == "True"
        except ClusterError:
            return False

    def _import(self, reference: str, archive: Path) -> None:
        if reference in self._ctr("images", "list", "--quiet").split():
            return
        with step(f"loading {reference.removeprefix('localhost/')}") as current, archive.open("rb") as content:
            # Through standard input, because the archive's path may not exist in the node.
            command = [*self._in_node(), "ctr", "-a", CONTAINERD_SOCKET, "-n", "k8s.io", "images", "import", "-"]
            with current.log.open("ab") as log:
                try:
                    code = subprocess.run(command, stdin=content, stdout=log, stderr=log, timeout=300).returncode
                except subprocess.TimeoutExpired:
                    raise ClusterError("took longer than 300 s") from None
            if code != 0:
                raise ClusterError(f"ctr ended with status {code}")

    def _ctr(self, *args: str) -> str:
        command = [*self._in_node(), "ctr", "-a", CONTAINERD_SOCKET, "-n", "k8s.io", *args]
        return run(command[0], *command[1:], timeout=60)

    def _in_node(self) -> list[str]:
        node = _node()
        if node is None:
            raise ClusterError("the local cluster is not running: `make up` starts it")
        return ["nsenter", f"--target={node}", "--mount", "--net"]


def _accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def _on_host(path: str) -> Path:
    """Return the machine's path of a path in the node's `/var/lib`."""
    return LIB / Path(path).relative_to("/var/lib")


def _write_kubeconfig(path: Path, secrets: Path, name: str) -> None:
    text = pki.kubeconfig(_addresses().api_server, secrets / "ca.crt", secrets / f"{name}.crt", secrets / f"{name}.key")
    _write(path, text)


def _write(path: Path, text: str) -> None:
    """Write a file that only root can read, unless it is the same: components restart when their files change."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


def _static_image(reference: str, binary: Path) -> tuple[str, Path]:
    """Return the reference and the archive of an image with one binary, built if it is not in the cache."""
    made_of = hashlib.sha256(f"{reference}\0{binary.parent.name}".encode()).hexdigest()[:12]
    archive = cache("images", f"{binary.name}-{made_of}.tar")
    if not archive.exists():
        oci.write_static(archive, reference, binary)
    return reference, archive


def _spawn_node(listener: socket.socket, version: str, port: int) -> None:
    """Start the node's first process and give it its interface.

    `unshare` makes the namespaces and stays as the parent: when it is killed, so is its child, and with process 1
    everything else in there.
    """
    fd = listener.fileno()
    namespaces = ["--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL"]
    command = ["unshare", *namespaces, "--propagation=private"]
    command += [sys.executable, "-m", NODE_MODULE, str(SPEC), str(fd)]
    with (LOG / "node.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=REPOSITORY,
            pass_fds=(fd,),
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        started = _started(process.pid)
        record = {"pid": process.pid, "started": started, "version": version, "port": port, "family": _family()}
        RECORD.write_text(json.dumps(record))
        answered, _, _ = select.select([process.stdout], [], [], NODE_LIMIT)
        if not answered or process.stdout.readline() != b"ready\n":
            raise ClusterError(f"its first process does not start; see {LOG / 'node.log'}")
        for command_line in (
            f"link add {INTERFACE} type veth peer name node0 netns {process.pid}",
            f"link set {INTERFACE} up",
            *(line for family in _addresses().families for line in _link(family)),
        ):
            run("ip", *command_line.split(" "), timeout=30)
        process.stdin.write(b"go\n")
    except BaseException:
        _kill(process.pid)
        raise
    finally:
        # The child continues without this process, so `subprocess` must not track it.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.returncode = 0


@contextmanager
def _ingress_socket() -> Iterator[socket.socket]:
    """The ingress's listening socket, made on this machine's loopback address and handed into the node.

    Raises:
        ClusterError: another program listens there.
    """
    port = _port()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise ClusterError(port_problem(port) or f"cannot listen on 127.0.0.1:{port}: {error.strerror}") from None
        listener.listen(4096)
        yield listener


def _link(family: Family) -> list[str]:
    """Return the arguments of `ip` that give the link its address and the routes to pods and Services."""
    checked = " nodad" if family.version == 6 else ""
    address = f"address add {family.host}/{family.prefix} dev {INTERFACE}{checked}"
    ranges = (family.pods, family.services)
    return [address, *(f"-{family.version} route add {each} via {family.node} dev {INTERFACE}" for each in ranges)]


def _refuse_overlapping_routes(family: Family) -> None:
    """Check that no other interface uses the cluster's addresses of a family.

    Raises:
        ClusterError: a route of this machine leads some of them elsewhere.
    """
    ours = [ipaddress.ip_network(n) for n in (family.pods, family.services, family.host)]
    for route in json.loads(run("ip", "-json", f"-{family.version}", "route", timeout=30)):
        if route["dst"] == "default":
            continue
        theirs = ipaddress.ip_network(route["dst"])
        # A wider route, to a company's 10.0.0.0/8 say, is no obstacle: ours are the more specific ones.
        if any(theirs.prefixlen >= own.prefixlen and theirs.network_address in own for own in ours):
            raise ClusterError(
                f"the route to {theirs} (device {route.get('dev')}) takes addresses of the cluster "
                f"({family.pods}, {family.services}). End what made it, or use another cluster through KUBECONFIG"
            )


def _end_node() -> None:
    """End a node, even an incomplete one, and remove all of it except the state directory."""
    if node := _node():
        _kill(node)
    # the parts that a lost record does not list
    for pid, _ in processes():
        _kill(pid)
    _until(lambda: not processes(), "the node's processes to end", DOWN_LIMIT)
    # It would end with the node's network, but closing connections can keep that alive for minutes.
    if Path("/sys/class/net", INTERFACE).exists():
        run("ip", "link", "delete", INTERFACE, timeout=30)
    # Each remaining group of an ended container would delay the next kubelet by seconds.
    for group in cgroups():
        _remove_cgroup(group)


def _check() -> None:
    """Check all prerequisites that `up` cannot provide, before anything is installed or built."""
    problems = packages.problems()
    try:
        binaries.require_go()
    except ClusterError as error:
        if not binaries.built():
            problems.append(str(error))
    running, port = _node() is not None, chosen_port()
    if running and port not in (None, _port()):
        problems.append(
            f"the cluster runs with its ingress at port {_port()}: `make down` first, or unset INGRESS_PORT"
        )
    # The remains of a node may hold the port; they are ended before the next node starts.
    if not leftovers() and (problem := port_problem(_port())):
        problems.append(problem)
    tools.obtain(problems=problems)


def _addresses() -> Addresses:
    """Return the addresses of the cluster. Raises the errors of `_family`."""
    return chosen(_family())


def _family() -> str:
    """Return the families of the cluster's addresses: of the existing state, otherwise the configured ones.

    Raises:
        ClusterError: others are configured than the state has, whose certificates and objects have its addresses.
    """
    configured = os.environ.get(VARIABLE, "")
    try:
        made = str(json.loads(RECORD.read_text())["family"])
    except (OSError, ValueError, KeyError):
        return configured or DEFAULT
    if configured not in ("", made):
        raise ClusterError(f"the cluster has {VARIABLE}={made}: `make down` first, or unset {VARIABLE}")
    return made


def _port() -> int:
    """Return the ingress's port: of the running node, otherwise the configured port."""
    if _node() is not None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(json.loads(RECORD.read_text())["port"])
    return chosen_port() or DEFAULT_INGRESS_PORT


def _node() -> int | None:
    """Return the process id of the running node's `unshare`, if it is still the started process."""
    try:
        record = json.loads(RECORD.read_text())
        return int(record["pid"]) if _started(record["pid"]) == record["started"] else None
    except (OSError, ValueError, KeyError):
        return None


def _started(pid: int) -> str:
    """Return the start time of a process in ticks since boot, which identifies it with its id; empty if it is dead."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] == "Z" else after_name[19]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    # A child process stays, with its namespaces, until its exit status is read.
    deadline = time.monotonic() + 10
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.02)


def _make_cgroups() -> None:
    """Make the control groups of the cluster."""
    for root in cgroup_roots():
        (root / CGROUP).mkdir()
        with contextlib.suppress(OSError):  # version 1, or a group without this controller
            (root / CGROUP / "cgroup.subtree_control").write_text("+cpu")
        for name, weight in CPU_WEIGHTS.items():
            if (root / CGROUP / name).exists():
                if not (root / "system.slice").exists():
                    (root / CGROUP / name).write_text(str(weight))
                (root / SYSTEM_CGROUP).mkdir()


def _remove_cgroup(group: Path) -> None:
    """Remove a control group and its descendants. A group becomes empty shortly after its last process has ended."""
    for directory, _, _ in os.walk(group, topdown=False):
        _until(partial(_removed, directory), f"control group {directory} to be empty", 10)


def _removed(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _until(condition: Callable[[], bool], what: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {timeout:.0f} s in vain for {what}")
        time.sleep(0.2)
