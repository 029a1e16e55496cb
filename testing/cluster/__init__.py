"""Clusters for the end-to-end tests, all behind one interface.

    cluster = choose()
    cluster.up()
    references = images.load(cluster)
    database = postgres.deploy(cluster, references["userrealtime-postgres"])
    cluster.kubectl("get", "pods")

`python -m testing.cluster --help` is the same from a shell.
"""

from .errors import ClusterError
from .provider import Image, Provider
from .selection import choose, removable

__all__ = ["ClusterError", "Image", "Provider", "choose", "removable"]
