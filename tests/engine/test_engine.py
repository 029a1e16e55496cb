from pathlib import Path

import pytest

from testing.cluster.errors import ClusterError
from testing.engine import engine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what an engine leaves outside of its namespaces: its state and a control group."""
    monkeypatch.setattr(engine, "STATE", tmp_path / "state")
    monkeypatch.setattr(engine, "cgroup_roots", lambda: [tmp_path / "memory"])
    monkeypatch.setattr(engine, "END_LIMIT", 0.5)
    (tmp_path / "state" / "docker" / "overlay2").mkdir(parents=True)
    (tmp_path / "memory" / "userrealtime-engine" / "docker" / "container").mkdir(parents=True)
    return tmp_path


def test_what_an_engine_left_is_removed(machine: Path) -> None:
    assert engine.leftovers() == [machine / "state", machine / "memory" / "userrealtime-engine"]
    engine.remove()
    assert engine.leftovers() == []
    assert list(machine.iterdir()) == [machine / "memory"]


def test_what_cannot_be_removed_is_reported(machine: Path) -> None:
    # A directory that is not empty acts as a control group with processes.
    (machine / "memory" / "userrealtime-engine" / "docker" / "process").touch()
    with pytest.raises(ClusterError, match=r"left:\n  .*memory/userrealtime-engine$"):
        engine.remove()
    assert not (machine / "state").exists()


def test_a_changed_machine_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"interface eth0", "mount /"}
    monkeypatch.setattr(engine, "snapshot", lambda: set(facts))
    monkeypatch.setattr(engine, "kernel_values", lambda: {"kernel value kernel/panic 0"})
    with engine.unchanged():
        pass
    with pytest.raises(ClusterError, match=r"gone: mount /\n  new: interface docker0$"), engine.unchanged():
        facts.symmetric_difference_update({"mount /", "interface docker0"})


def test_other_systems_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ClusterError, match="needs Linux and root"):
        engine.prepare()
