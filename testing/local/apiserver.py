"""A Kubernetes API server on loopback: etcd and kube-apiserver, with no node and no controller.

For tests that need only the real API: objects are stored, and no controller acts on them. Needs no root.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from testing.cluster import ClusterError, binaries
from testing.cluster.local import pki
from testing.cluster.local.pki import Identity
from testing.cluster.process import run
from testing.patience import COMMAND_TIMEOUT_S, PATIENCE_S

from .ports import free_port

IDENTITIES = (
    Identity("apiserver", "/CN=kube-apiserver", ("DNS:localhost", "IP:127.0.0.1")),
    Identity("admin", "/O=system:masters/CN=admin", ("DNS:admin",)),
)


# all writes with a response, and for Leases also the requested contents
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "None", "verbs": ["get", "list", "watch"]},
        {"level": "Request", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}]},
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True)
class Write:
    """A write that the API server carried out, by its own clock. `lease_holder` is whom it gave a Lease, if it did."""

    user: str
    verb: str
    resource: str
    name: str
    received: datetime
    answered: datetime
    lease_holder: str | None


class LocalApiServer:
    """A context manager: leaving it ends both processes and removes what they stored.

    `options` are more of kube-apiserver's. `services` are the ranges of the Services' addresses, of which the first has
    the primary family. With `audit`, it keeps a record for `writes`. `program` is kube-apiserver of
    another version than that of the local cluster.
    """

    def __init__(
        self, *options: str, services: str = "10.0.0.0/16", audit: bool = False, program: Path | None = None
    ) -> None:
        self._program = program
        self._services = services
        self.port = free_port()
        self._home = Path(tempfile.mkdtemp(prefix="userrealtime-apiserver-"))
        self._pki = self._home / "pki"
        self._audit = self._home / "audit.jsonl"
        policy = self._home / "audit-policy.json"
        policy.write_text(json.dumps(AUDIT_POLICY))
        self._options = [
            *([f"--audit-policy-file={policy}", f"--audit-log-path={self._audit}"] if audit else []),
            *options,
        ]
        self._etcd_ports = free_port(), free_port()
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self.kubeconfig = self.kubeconfig_for(self.port)

    def kubeconfig_for(self, port: int, user: str = "admin") -> Path:
        """Return a kubeconfig of a user for the server at this port of loopback.

        The user is the administrator, or a user with only the granted rights, whose requests the server limits.
        """
        # the certificate with the fewest extensions
        identities = [*IDENTITIES, Identity(user, f"/CN={user}", (f"DNS:{user}",))]
        pki.make(self._pki, identities, pki.Extensions.MINIMAL)
        path = self._home / f"kubeconfig-{port}-{user}"
        path.touch(mode=0o600)
        certificate = self._pki / f"{user}.crt", self._pki / f"{user}.key"
        path.write_text(pki.kubeconfig(f"https://127.0.0.1:{port}", self._pki / "ca.crt", *certificate))
        return path

    def __enter__(self) -> Self:
        try:
            client, peer = (f"http://127.0.0.1:{port}" for port in self._etcd_ports)
            self._etcd = self._popen(
                *("etcd", f"--data-dir={self._home / 'etcd'}", "--unsafe-no-fsync", "--log-level=error"),
                *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
                *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
                f"--initial-cluster=default={peer}",
            )
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the API server and wait until it says it is ready."""
        self._server = self._popen(
            *("kube-apiserver", f"--etcd-servers=http://127.0.0.1:{self._etcd_ports[0]}"),
            *(f"--secure-port={self.port}", "--bind-address=127.0.0.1"),
            f"--service-cluster-ip-range={self._services}",
            # An address of the primary family is required. Nothing connects to it.
            *(["--advertise-address=fd00::1"] if ":" in self._services.partition(",")[0] else []),
            *(f"--tls-cert-file={self._pki}/apiserver.crt", f"--tls-private-key-file={self._pki}/apiserver.key"),
            *(f"--client-ca-file={self._pki}/ca.crt", "--authorization-mode=RBAC"),
            "--service-account-issuer=https://kubernetes.default.svc",
            *(
                f"--service-account-key-file={self._pki}/sa.pub",
                f"--service-account-signing-key-file={self._pki}/sa.key",
            ),
            *self._options,
            # There is no controller that creates service accounts.
            "--disable-admission-plugins=ServiceAccount",
            f"--cert-dir={self._home}",
        )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(ClusterError):
                if self.kubectl("get", "--raw", "/readyz", timeout=20).strip() == "ok":
                    return
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"the API server does not start:\n{self.log()}")
            time.sleep(0.3)

    @property
    def pids(self) -> dict[str, int]:
        """The processes, by the names of their programs."""
        assert self._etcd is not None
        assert self._server is not None
        return {"etcd": self._etcd.pid, "kube-apiserver": self._server.pid}

    def kill(self) -> None:
        """End the API server like a crash. Its data stays."""
        assert self._server is not None
        self._server.kill()
        self._server.wait(timeout=PATIENCE_S)

    def pause(self) -> None:
        """Let the API server accept connections without a response, until `resume`."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = COMMAND_TIMEOUT_S) -> str:
        """Run kubectl against this server and return its output."""
        return run(binaries.kubectl(), f"--kubeconfig={self.kubeconfig}", *arguments, input=input, timeout=timeout)

    def writes(self, *users: str) -> list[Write]:
        """Return the successful writes of these users, in the order of their responses."""
        found = []
        # The last line may be incomplete.
        lines, _, _ = self._audit.read_text().rpartition("\n")
        for line in lines.splitlines():
            event = json.loads(line)
            if event["user"]["username"] not in users or event.get("responseStatus", {}).get("code", 500) >= 300:
                continue
            about = event["objectRef"]
            spec = event.get("requestObject", {}).get("spec", {})
            found.append(
                Write(
                    event["user"]["username"],
                    event["verb"],
                    "/".join(filter(None, (about["resource"], about.get("subresource")))),
                    about.get("name", ""),
                    datetime.fromisoformat(event["requestReceivedTimestamp"]),
                    datetime.fromisoformat(event["stageTimestamp"]),
                    spec.get("holderIdentity", "") if about["resource"] == "leases" else None,
                )
            )
        return found

    def log(self) -> str:
        """Return the last output of the processes."""
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self._home.glob("*.log")))

    def close(self) -> None:
        """End both processes and remove their files."""
        for process in (self._server, self._etcd):
            if process is not None:
                process.kill()
                process.wait(timeout=PATIENCE_S)
        shutil.rmtree(self._home, ignore_errors=True)

    def _popen(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        other = self._program if program == "kube-apiserver" else None
        command = [str(binaries.hyperkube()), program] if other is None else [str(other)]
        with (self._home / f"{program}.log").open("ab") as output:
            return subprocess.Popen(
                [*command, *arguments],
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
