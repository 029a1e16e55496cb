"""The operator as a process of this machine, against any API server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from testing.cluster import ClusterError
from testing.patience import PATIENCE_S

from .ports import free_port

ROOT = Path(__file__).parents[2]
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LEFT_OUT = ("leases", "discovery", "pods")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class LocalOperator:
    """One replica, which competes for the Lease `lease`. A context manager: leaving it ends the process.

    `log` is the file with its output; `instance` is its name, `port` the port of its metrics, `config` its
    configuration file, to which `settings` are added.
    """

    def __init__(
        self,
        kubeconfig: Path,
        database_url: str,
        *namespaces: str,
        instance: str,
        lease: str,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.instance = instance
        self.kubeconfig = kubeconfig
        self._home = Path(tempfile.mkdtemp(prefix="userrealtime-operator-"))
        self.log = self._home / "log"
        self.config = self._home / "config.yaml"
        document = {"namespaces": list(namespaces), "relay": {"image": "relay:none"}, **(settings or {})}
        self.config.write_text(yaml.safe_dump(document))
        self.port = free_port()
        self._command = [
            *(sys.executable, "-m", "userrealtime_operator", "run", "--config", str(self.config), "--lease", lease),
            *("--health-port", str(self.port)),
        ]
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "DATABASE_URL": database_url,
            "POD_ID": instance,
            "PYTHONPATH": str(ROOT / "operator"),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    def start(self) -> None:
        """Start the process; `wait_ready` waits until its caches are full."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def wait_ready(self, timeout: float = PATIENCE_S) -> None:
        """Wait until it is ready to lead.

        Raises:
            ClusterError: it is not; its log is in the text.
        """
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5).close()
                return
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"operator {self.instance} is not ready:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        """End it gracefully, as the kubelet does."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(timeout=PATIENCE_S)

    def kill(self) -> None:
        """End it like a crash."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=PATIENCE_S)

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return all samples by name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        return {
            (name, frozenset(_LABEL.findall(labels or ""))): float(value)
            for name, labels, value in _SAMPLE.findall(text)
        }

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with this name and these labels."""
        wanted = set(labels.items())
        return sum(value for (found, having), value in self.metrics().items() if found == name and wanted <= having)

    def leads(self) -> bool:
        """Return whether it answers and is the leader."""
        try:
            return self.metric("userrealtime_operator_leader") == 1
        except OSError:
            return False

    def requests(self) -> dict[str, int]:
        """Return the number of requests by verb and resource: `PATCH deployments`: 7.

        Without leases, discovery, and the checks of missing pods, which continue where there is no node.
        """
        counts: Counter[str] = Counter()
        for (name, having), value in self.metrics().items():
            labels = dict(having)
            if name == "userrealtime_operator_rest_client_requests_total" and labels["resource"] not in _LEFT_OUT:
                counts[f"{labels['verb']} {labels['resource']}"] += int(value)  # for all status codes
        return dict(counts)
