"""The local cluster leaves the machine as it found it.

It starts and ends the machine's one local cluster, so it runs only where that is the cluster of choice, and none is in
use: first in `make e2e` from a clean start.
"""

import os
import signal

import pytest

from testing.cluster import choose
from testing.cluster.local import LocalCluster
from testing.cluster.local.cluster import _node
from testing.cluster.local.leftovers import leftovers, snapshot

pytestmark = [
    pytest.mark.skipif(not isinstance(choose(), LocalCluster), reason="the tests use another cluster here"),
    pytest.mark.skipif(bool(leftovers()), reason="a local cluster is in use: `make down` first"),
]


def test_nothing_is_left_behind() -> None:
    before = snapshot()
    cluster = LocalCluster()
    try:
        cluster.up()
        node = _node()
        assert node is not None
        assert leftovers()

        cluster.up()
        assert _node() == node, "a second `up` restarts nothing"

        os.kill(node, signal.SIGKILL)
        cluster.up()
        assert cluster.answers()
        assert _node() not in (node, None)
    finally:
        cluster.down()
    assert leftovers() == []
    assert snapshot() == before
    cluster.down()
