"""The CPU of the components of the local cluster, as the benchmark of wakes reads it."""

from __future__ import annotations

import os

import pytest

from bench import node_cpu
from bench.node_cpu import CONTAINER_RUNTIME, OTHER, RELAY, component_of, cpu_seconds, difference, read_cpu


@pytest.mark.parametrize(
    ("command", "component"),
    [
        ("/cache/hyperkube-1.34.4/hyperkube kubelet --config=x", "kubelet"),
        ("/cache/hyperkube-1.34.4/hyperkube etcd --data-dir=/var/lib/etcd", "API server and etcd"),
        ("/usr/bin/containerd-shim-runc-v2 -namespace k8s.io", CONTAINER_RUNTIME),
        ("/app/venv/bin/python -m userrealtime_operator.activator --config=x", "activators"),
        ("/app/venv/bin/python -m userrealtime_operator run", "operators"),
        ("/app/venv/bin/python -m userrealtime_relay", RELAY),
        ("/coredns -conf /etc/coredns/Corefile", OTHER),
    ],
)
def test_the_component_of_a_process(command: str, component: str) -> None:
    assert component_of(command) == component


def test_cpu_includes_the_children_that_have_ended() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    statistics = (
        f"42 (a (strange) name) S 1 42 42 0 -1 4194560 1 2 3 4 {ticks} {2 * ticks} {3 * ticks} {4 * ticks} 20 0"
    )
    assert cpu_seconds(statistics) == 10


def test_a_new_component_counts_from_zero() -> None:
    assert difference({"kubelet": 2.0}, {"kubelet": 3.5, RELAY: 0.25}) == {"kubelet": 1.5, RELAY: 0.25}


def test_the_processes_below_the_first_one_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_cpu, "_node", os.getpid)
    found = read_cpu()
    assert found is not None
    assert sum(found.values()) > 0


def test_without_the_local_cluster_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_cpu, "_node", lambda: None)
    assert read_cpu() is None
