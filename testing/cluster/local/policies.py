"""NetworkPolicies, enforced for the length of a block: the `ptp` plugin lets every packet through.

`testing/cluster/netpol` enforces them, with rules for iptables and sets of addresses in the node's network. It runs in
all namespaces of the node, and ends with the node. It also removes its rules and ends when its standard input
is closed: at the end of the block, or of this process.
"""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from testing.cluster.errors import ClusterError
from testing.cluster.process import run

from .components import ENVIRONMENT, NODE

# Program to Debian package, as in `packages`.
PROGRAMS = {"iptables": "iptables", "ipset": "ipset"}
# The prefix of its chains; the kubelet has similar chains.
CHAINS = ("KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-")
START_LIMIT = 60.0
END_LIMIT = 30.0


@contextmanager
def enforced(in_node: Sequence[str], program: Path, kubeconfig: str, services: str, log: Path) -> Iterator[None]:
    """Enforce policies while the block runs.

    Args:
        in_node: the command that runs another in the node's namespaces.
        program: the built `testing/cluster/netpol`.
        kubeconfig: path, inside the node, of that of an administrator.
        services: the ranges of the services' addresses, separated by commas.
        log: file on this machine that its messages are appended to.

    Raises:
        ClusterError: it does not start, or leaves rules or sets behind.
    """
    command = [*in_node, str(program), kubeconfig, NODE, services]
    with log.open("ab") as messages:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            env=ENVIRONMENT,
            # An interrupt from the keyboard is for the tests, and this process ends after them.
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        answered, _, _ = select.select([process.stdout], [], [], START_LIMIT)
        if not answered or process.stdout.readline() != b"ready\n":
            raise ClusterError(f"the policies are not enforced; {log} says why")
        yield
        if process.poll() is not None:
            raise ClusterError(f"the policies are not enforced any more; {log} says why")
    finally:
        _end(process)
    if left := remains(in_node):
        raise ClusterError("the policies have left behind, in the node's network:\n  " + "\n  ".join(left))


def remains(in_node: Sequence[str]) -> list[str]:
    """Return the rules and sets of addresses in the node that belong to policies, one per line."""
    rules = "".join(
        run(in_node[0], *in_node[1:], program, "--table", "filter", env=ENVIRONMENT, timeout=30)
        for program in ("iptables-save", "ip6tables-save")
    )
    sets = run(in_node[0], *in_node[1:], "ipset", "list", "-name", env=ENVIRONMENT, timeout=30)
    return [line for line in rules.splitlines() if any(chain in line for chain in CHAINS)] + sets.splitlines()


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    try:
        process.wait(timeout=END_LIMIT)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=END_LIMIT)
