"""The clusters from a shell: `python -m testing.cluster --help`."""

import argparse
import contextlib
import shutil
import sys
from collections.abc import Callable

from . import docker, images, kind, postgres
from .errors import ClusterError
from .paths import cache
from .process import run
from .progress import heed_sigterm, note, step
from .provider import Provider
from .selection import choose, present, removable

DESCRIPTION = """\
A Kubernetes cluster for the end-to-end tests. The first of these that is possible is used:

  1. the cluster of KUBECONFIG, where that is set (it is never created or deleted);
  2. a cluster that an earlier run created on this machine;
  3. kind, where a Docker engine answers;
  4. a one-node Kubernetes built from Go modules, on Linux as root.

Every command can be repeated: what is done already is skipped.
"""


def build(cluster: Provider) -> None:
    cluster.prepare()
    images.build()


def up(cluster: Provider) -> None:
    cluster.up()


def status(cluster: Provider) -> None:
    print(cluster.status())


def load_images(cluster: Provider) -> None:
    for reference in images.load(cluster).values():
        print(reference)


def database(cluster: Provider) -> None:
    reference = images.load(cluster)["userrealtime-postgres"]
    postgres.deploy(cluster, reference)
    note(f"PostgreSQL runs as {postgres.SERVICE} in namespace {postgres.NAMESPACE}")


def environment(cluster: Provider) -> None:
    # The shell reads standard output, so the progress of downloads and builds is written elsewhere.
    with contextlib.redirect_stdout(sys.stderr):
        programs = f"{cluster.kubectl_path().parent}:{cluster.helm_path().parent}"
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    print(f"export INGRESS_URL={cluster.ingress_url}")
    print(f'export PATH="{programs}:$PATH"')


def clean() -> None:
    """Remove the cache, and what `make up` and `make test` left in the Docker engine.

    Raises:
        ClusterError: a cluster uses them.
    """
    if running := present():
        names = " and ".join(cluster.name for cluster in running)
        raise ClusterError(f"a cluster ({names}) is on this machine: `make down` first")
    if docker.answers():
        _clean_engine()
    shutil.rmtree(cache(), ignore_errors=True)
    note(f"{cache()} removed")


def _clean_engine() -> None:
    """Remove the project's images, the node's image, and kind's network, unless another cluster uses them."""
    commands = [["docker", "rmi", image] for image in (*images.Docker().own_images(), kind.node_image())]
    if not run("docker", "ps", "--all", "--quiet", "--filter", "label=io.x-k8s.kind.cluster", timeout=60):
        commands.append(["docker", "network", "rm", "kind"])
    with step("removing images from the Docker engine") as current:
        for command in commands:
            # It is in use or does not exist.
            with contextlib.suppress(ClusterError):
                current.run(command, env=docker.environment(), timeout=120)


COMMANDS: dict[str, tuple[str, Callable[[Provider], None]]] = {
    "build": ("build everything that the other commands need", build),
    "up": ("start the cluster, with DNS and an ingress controller", up),
    "status": ("one line about the cluster", status),
    "images": ("build the images and load them; prints their references", load_images),
    "postgres": ("run a PostgreSQL in the cluster", database),
    "env": ('print shell lines for kubectl and helm: eval "$(python -m testing.cluster env)"', environment),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m testing.cluster",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (help_text, _) in COMMANDS.items():
        commands.add_parser(name, help=help_text)
    commands.add_parser("down", help="remove the cluster and all it left on this machine; caches stay")
    commands.add_parser("clean", help="remove the caches: programs, archives, and the images in the Docker engine")
    command = parser.parse_args().command
    heed_sigterm()
    try:
        if command == "clean":
            clean()
        elif command == "down":
            for cluster in removable():
                cluster.down()
        else:
            COMMANDS[command][1](choose())
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
