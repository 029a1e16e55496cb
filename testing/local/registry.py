"""A container registry on this machine, which keeps images, charts and signatures. It has no accounts and no TLS."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from testing.cluster import ClusterError, binaries
from testing.patience import PATIENCE_S

from .ports import free_port

REQUEST_TIMEOUT_S: Final = 20.0
MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class LocalRegistry:
    """A context manager: leaving it ends the process and removes its content.

    Attributes:
        address: `host:port`; by default a free port of 127.0.0.1.
    """

    def __init__(self, address: str = "") -> None:
        self.address = address or f"127.0.0.1:{free_port()}"
        self._home = Path(tempfile.mkdtemp(prefix="userrealtime-registry-"))
        self._log = self._home / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            command = [str(binaries.registry()), str(self._home / "content"), self.address]
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def digest(self, repository: str, tag: str) -> str:
        """Return the digest of a tag.

        Raises:
            ClusterError: the registry does not have it.
        """
        url = f"http://{self.address}/v2/{repository}/manifests/{tag}"
        request = urllib.request.Request(url, method="HEAD", headers={"Accept": ", ".join(MANIFESTS)})
        try:
            with _direct().open(request, timeout=REQUEST_TIMEOUT_S) as answer:
                found: str = answer.headers["Docker-Content-Digest"]
        except urllib.error.HTTPError as error:
            with error:
                raise ClusterError(f"the registry answers {error.code} to {url}") from None
        return found

    def close(self) -> None:
        """End the process and remove its content."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=PATIENCE_S)
        shutil.rmtree(self._home, ignore_errors=True)

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError), _direct().open(f"http://{self.address}/v2/", timeout=REQUEST_TIMEOUT_S):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"the registry does not start:\n{self._log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)


def _direct() -> urllib.request.OpenerDirector:
    # The address is one of this machine, so no proxy leads to it.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
