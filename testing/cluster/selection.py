"""The selection of a cluster.

In this order: the cluster of a given `KUBECONFIG`; an existing cluster of this project on this machine; kind, if a
Docker engine answers; a one-node Kubernetes built from Go modules, on Linux as root.
"""

import os
import shutil
import sys
from pathlib import Path

from . import docker, kind
from .errors import ClusterError
from .existing import ExistingCluster
from .kind import KindCluster
from .local import LocalCluster, leftovers
from .provider import Provider

NOTHING_POSSIBLE = """this machine has nothing to run a cluster with. Any one of these is enough:
  - start a Docker engine (https://docs.docker.com/engine/install/): a kind cluster is created in it;
  - set KUBECONFIG to the kubeconfig file of a cluster that may be used for tests;
  - on Linux, run as root: a one-node Kubernetes is built with Go 1.24 or later (https://go.dev/dl/)."""


def choose() -> Provider:
    """Return the cluster to use; the module's docstring has the order.

    Raises:
        ClusterError: no cluster is possible; the message has advice.
    """
    if given := os.environ.get("KUBECONFIG"):
        # `python -m testing.cluster env` sets it to one of this project, which is not a foreign cluster.
        ours: list[Provider] = [KindCluster(), LocalCluster()]
        return next((own for own in ours if own.kubeconfig == Path(given)), ExistingCluster(Path(given)))
    if there := present():
        return there[0]
    if docker.answers():
        return KindCluster()
    if _local_possible():
        return LocalCluster()
    problem = docker.unusable() if shutil.which("docker") else ""
    raise ClusterError(f"{NOTHING_POSSIBLE}\n  {problem}".rstrip())


def present() -> list[Provider]:
    """Return the project's clusters on this machine, running or stopped; the first is preferred."""
    found: list[Provider] = []
    if docker.answers() and kind.node() is not None:
        found.append(KindCluster())
    if _local_possible() and leftovers.leftovers():
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
