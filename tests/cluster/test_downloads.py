"""Downloads from a server of the test."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.cluster import binaries, downloads
from testing.cluster.errors import ClusterError
from testing.patience import PATIENCE_S


class Site:
    """The URL of a web server, the directory that it serves, and the requests that it received."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.authorizations: list[str] = []

    def put(self, path: str, content: bytes) -> str:
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return f"{self.url}/{path}"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    directory = tmp_path / "site"
    directory.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            found.authorizations.append(self.headers.get("Authorization", ""))
            super().do_GET()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(directory)))
    found = Site(f"http://127.0.0.1:{server.server_port}", directory)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join(timeout=PATIENCE_S)
    server.server_close()


@pytest.mark.parametrize("form", ["{}", "{}  tool\n", "{} *tool\n"])
def test_a_release_is_verified_by_the_published_checksum(site: Site, tmp_path: Path, form: str) -> None:
    url = site.put("tool", b"program")
    checksum = site.put("tool.sha256", form.format(hashlib.sha256(b"program").hexdigest()).encode())
    out = tmp_path / "out"
    downloads.release(url, checksum, out)
    assert out.read_bytes() == b"program"


def test_another_content_is_refused(site: Site, tmp_path: Path) -> None:
    url = site.put("tool", b"something else")
    checksum = site.put("tool.sha256", hashlib.sha256(b"program").hexdigest().encode())
    with pytest.raises(ClusterError, match="has the checksum"):
        downloads.release(url, checksum, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_page_is_no_checksum(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="has no SHA-256 checksum"):
        downloads.release(site.put("tool", b"x"), site.put("tool.sha256", b"<html>"), tmp_path / "out")


def test_what_cannot_be_downloaded_is_named_with_the_reason(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="/absent cannot be downloaded: HTTP status 404"):
        downloads.release(f"{site.url}/tool", f"{site.url}/absent", tmp_path / "out")


def test_a_proxy_of_the_machine_is_used(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    # The server acts as a proxy: it receives a request for the whole URL, and has no such file.
    monkeypatch.setenv("http_proxy", site.url)
    with pytest.raises(ClusterError, match="HTTP status 404"):
        downloads.release("http://release.invalid/tool", "http://release.invalid/tool.sha256", tmp_path / "out")
    assert site.authorizations


def test_extract(tmp_path: Path) -> None:
    (tmp_path / "helm").write_text("program")
    archive = tmp_path / "helm.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "helm", "linux-amd64/helm")
    downloads.extract(archive, "linux-amd64/helm", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "program"
    with pytest.raises(ClusterError, match="has no file linux-arm64/helm"):
        downloads.extract(archive, "linux-arm64/helm", tmp_path / "out")


def module(directory: Path, files: dict[str, str]) -> bytes:
    path = directory / "made.zip"
    with zipfile.ZipFile(path, "w") as content:
        for name, text in files.items():
            content.writestr(f"example.com/Module@v1.0.0/{name}", text)
    return path.read_bytes()


def test_the_checksum_of_a_module_is_that_of_go_sum(tmp_path: Path) -> None:
    content = module(tmp_path, {"b": "2", "a": "1"})
    (tmp_path / "x.zip").write_bytes(content)
    lines = "".join(
        f"{hashlib.sha256(text).hexdigest()}  example.com/Module@v1.0.0/{name}\n"
        for name, text in (("a", b"1"), ("b", b"2"))
    )
    expected = hashlib.sha256(lines.encode()).digest()
    assert downloads.module_checksum(tmp_path / "x.zip") == "h1:" + base64.b64encode(expected).decode()


def test_a_module_comes_from_the_first_proxy_that_has_it(site: Site, tmp_path: Path) -> None:
    content = module(tmp_path, {"a": "1"})
    site.put("second/example.com/!module/@v/v1.0.0.zip", content)
    out = tmp_path / "out.zip"
    h1 = downloads.module_checksum(tmp_path / "made.zip")
    host = site.url.removeprefix("http://")
    proxies = f"off,{site.url}/first|http://me:p%40ss@{host}/second/,direct"
    downloads.go_module("example.com/Module", "v1.0.0", h1, proxies, out)
    assert out.read_bytes() == content
    assert site.authorizations == ["", "Basic bWU6cEBzcw=="]


def test_a_module_with_another_content_is_refused(site: Site, tmp_path: Path) -> None:
    site.put("example.com/!module/@v/v1.0.0.zip", module(tmp_path, {"a": "1"}))
    with pytest.raises(ClusterError, match="has the checksum"):
        downloads.go_module("example.com/Module", "v1.0.0", "h1:other", site.url, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_without_a_proxy_a_module_cannot_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="GOPROXY=direct"):
        downloads.go_module("example.com/Module", "v1.0.0", "h1:", "direct", tmp_path / "out.zip")


def test_errors_do_not_name_passwords(site: Site, tmp_path: Path) -> None:
    host = site.url.removeprefix("http://")
    with pytest.raises(ClusterError) as caught:
        downloads.go_module("example.com/m", "v1.0.0", "h1:", f"http://me:secret@{host}", tmp_path / "out.zip")
    assert "secret" not in str(caught.value)


def test_the_gateway_api_needs_no_go(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = f"sigs.k8s.io/gateway-api@v{binaries.GATEWAY_API}/config/crd/"
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w") as content:
        for name in (
            "standard/gateway.networking.k8s.io_b.yaml",
            "standard/gateway.networking.k8s.io_a.yaml",
            "x.yaml",
        ):
            content.writestr(prefix + name, f"kind: {name}\n")
    site.put(f"sigs.k8s.io/gateway-api/@v/v{binaries.GATEWAY_API}.zip", path.read_bytes())
    monkeypatch.setattr(binaries, "GATEWAY_API_SUM", downloads.module_checksum(path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GOPROXY", site.url)
    kinds = [line.rpartition("_")[2] for line in binaries.gateway_api().splitlines() if line != "---"]
    assert kinds == ["a.yaml", "b.yaml"]
