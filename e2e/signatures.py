"""Signatures of a release by cosign, with a key of this test in place of the identity of the workflow.

`make release-proof` runs this file; `make e2e` does not, because the build of cosign takes minutes.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

import pytest

from testing.cluster import ClusterError, binaries
from testing.cluster.process import run

from .test_registry import Published, published

__all__ = ["published"]
LIMIT_S: Final = 120
# The registry has no TLS, and nothing of a test belongs into the public log of signatures.
REGISTRY: Final = ("--allow-http-registry",)
SIGN: Final = ("sign", "--yes", *REGISTRY, "--use-signing-config=false", "--tlog-upload=false")
VERIFY: Final = ("verify", *REGISTRY, "--insecure-ignore-tlog")


class Cosign:
    """cosign with a new pair of keys."""

    def __init__(self, folder: Path) -> None:
        self._key = folder / "test"
        self._environment = {**os.environ, "COSIGN_PASSWORD": secrets.token_hex(16)}
        self._run("generate-key-pair", f"--output-key-prefix={self._key}")

    def sign(self, reference: str) -> None:
        """Sign an artifact."""
        self._run(*SIGN, f"--key={self._key}.key", reference)

    def verify(self, reference: str) -> str:
        """Return the verified content of the signatures.

        Raises:
            ClusterError: there is no signature with this key.
        """
        return self._run(*VERIFY, f"--key={self._key}.pub", reference)

    def _run(self, *arguments: str) -> str:
        return run(binaries.cosign(), *arguments, env=self._environment, timeout=LIMIT_S)


def folder(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir()
    return path


def test_signatures_are_verified(published: Published, tmp_path: Path) -> None:
    cosign, other = (Cosign(folder(tmp_path, name)) for name in ("own", "other"))
    assert len(published.references) == 3
    for reference in published.references:
        with pytest.raises(ClusterError, match="no signatures found"):
            cosign.verify(reference)
        cosign.sign(reference)
        assert reference.rpartition("@")[2] in cosign.verify(reference)
        with pytest.raises(ClusterError, match="failed to verify signature"):
            other.verify(reference)
