"""The parts of the command that need no cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from testing.patience import PATIENCE_S

CONFIG = "namespaces: [users]\nrelay: {image: relay}\n"
PARKING = CONFIG + "activator: {enabled: true, namespace: n, service: s, parking: true}\n"
SEALED = CONFIG + "activator: {enabled: true, namespace: n, service: s, sealedKeys: true}\n"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "userrealtime_operator.activator", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_help_says_what_it_is() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "wakes them" in done.stdout
    assert "--no-user-keys" in done.stdout


@pytest.mark.parametrize(
    ("config", "arguments", "complaint"),
    [
        ("namespaces: []\n", (), "namespaces: required"),
        (CONFIG, ("--no-user-keys",), "requires relay.auth.jwksUrl"),
        (SEALED, (), "SEAL_KEY: must have 32 to 4096 bytes, and has 0"),
        (PARKING, (), "DATABASE_URL: required"),
        (None, (), "cannot read"),
    ],
)
def test_a_bad_start_is_said(tmp_path: Path, config: str | None, arguments: tuple[str, ...], complaint: str) -> None:
    path = tmp_path / "config.yaml"
    if config is not None:
        path.write_text(config)
    done = run(f"--config={path}", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("config", [CONFIG, SEALED, PARKING])
def test_without_a_cluster_it_says_so(tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config)
    monkeypatch.setenv("SEAL_KEY", "a key of the seal, with enough bytes")
    monkeypatch.setenv("DATABASE_URL", "postgresql://activator:x@127.0.0.1:1/app")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    done = run(f"--config={path}")
    assert done.returncode == 1
    assert "no service account and no usable kubeconfig" in done.stderr
    assert "Traceback" not in done.stderr
