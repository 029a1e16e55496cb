"""`make down`: stops everything that `make up` and `make test` started."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from testing import demo
from testing.cluster import ClusterError, removable
from testing.cluster.existing import ExistingCluster
from testing.cluster.progress import heed_sigterm
from testing.system import uninstall


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    argparse.ArgumentParser(
        prog="make down",
        description="Remove the cluster that `make up` made; from a cluster given by KUBECONFIG, what was installed.",
    ).parse_args(arguments)
    heed_sigterm()
    try:
        for cluster in removable():
            if isinstance(cluster, ExistingCluster) and cluster.answers():
                demo.uninstall(cluster)
                uninstall(cluster)
            cluster.down()
    except ClusterError as error:
        print(f"make down: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
