"""The clusters from a shell: `python -m e2e.cluster --help`."""

import argparse
import shutil
import sys
from collections.abc import Callable

from . import images, postgres
from .errors import ClusterError
from .local.leftovers import leftovers
from .paths import cache
from .progress import heed_sigterm, note
from .provider import Provider, choose

DESCRIPTION = """\
A Kubernetes cluster for the end-to-end tests. The first of these that is possible is used:

  1. the cluster of KUBECONFIG, where that is set (it is never made or deleted by us);
  2. kind, where a Docker engine answers;
  3. a one-node Kubernetes built from Go modules, on Linux as root.

Every command can be repeated: what is done already is skipped.
"""


def build(cluster: Provider) -> None:
    cluster.prepare()
    images.build()


def up(cluster: Provider) -> None:
    cluster.up()


def down(cluster: Provider) -> None:
    cluster.down()


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
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    print(f"export INGRESS_URL={cluster.ingress_url}")
    print(f'export PATH="{cluster.kubectl_path().parent}:{cluster.helm_path().parent}:$PATH"')


def clean() -> None:
    if sys.platform == "linux" and leftovers():
        raise ClusterError("a local cluster runs from the cache: `python -m e2e.cluster down` first")
    shutil.rmtree(cache(), ignore_errors=True)
    note(f"{cache()} removed")


COMMANDS: dict[str, tuple[str, Callable[[Provider], None]]] = {
    "build": ("build all that the other commands need, so that they are quick", build),
    "up": ("start the cluster, with DNS and an ingress controller", up),
    "down": ("remove the cluster and all it left on this machine; caches stay", down),
    "status": ("one line about the cluster", status),
    "images": ("build the images and load them; prints their references", load_images),
    "postgres": ("run a PostgreSQL in the cluster", database),
    "env": ('print shell lines for kubectl and helm: eval "$(python -m e2e.cluster env)"', environment),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m e2e.cluster",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (help_text, _) in COMMANDS.items():
        commands.add_parser(name, help=help_text)
    commands.add_parser("clean", help="remove the cache: built programs, base images, image archives")
    command = parser.parse_args().command
    heed_sigterm()
    try:
        if command == "clean":
            clean()
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
