"""Every test has a separate cache: none reads or changes the builds of this machine."""

from pathlib import Path

import pytest

from testing.cluster import docker


@pytest.fixture(autouse=True)
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    docker.unusable.cache_clear()
    return tmp_path / "cache" / "userrealtime"
