"""Files of official releases, downloaded over HTTPS and verified.

The machine sets proxies and authorities: `HTTPS_PROXY`, `NO_PROXY`, `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE`.
"""

import base64
import hashlib
import http.client
import os
import re
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from userrealtime_core.trust import client_context

from .errors import ClusterError

ANSWER_LIMIT = 20.0
CHUNK = 1 << 20


def release(url: str, checksum_url: str, out: Path) -> None:
    """Download `url` to `out`, verified by the SHA-256 that the project publishes at `checksum_url`.

    Raises:
        ClusterError: one of them cannot be downloaded, or the checksum differs; in this case `out` does not exist.
    """
    with _open(checksum_url) as answer:
        published = answer.read(4096).decode(errors="replace")
    expected = re.match(r"[0-9a-f]{64}\b", published.strip())
    if expected is None:
        raise ClusterError(f"{checksum_url} has no SHA-256 checksum")
    digest = hashlib.sha256()
    partial = out.with_name(out.name + ".partial")
    with _open(url) as answer, partial.open("wb") as file:
        while chunk := answer.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != expected[0]:
        partial.unlink()
        raise ClusterError(f"{url} has the checksum {digest.hexdigest()}, not {expected[0]}, which is published for it")
    partial.replace(out)


def extract(archive: Path, member: str, out: Path) -> None:
    """Write one file of a gzipped tar archive to `out`.

    Raises:
        ClusterError: the archive has no such file.
    """
    with tarfile.open(archive, "r:gz") as tar:
        try:
            content = tar.extractfile(member)
        except KeyError:
            content = None
        if content is None:
            raise ClusterError(f"{archive.name} has no file {member}")
        out.write_bytes(content.read())


def go_module(module: str, version: str, h1: str, proxies: str, out: Path) -> None:
    """Download a Go module's zip file to `out` from the first proxy of a `GOPROXY` list that has it.

    Args:
        h1: the module's checksum as in go.sum, `h1:...`.
        proxies: the list; `direct` and `off` in it are ignored, because they need Go.

    Raises:
        ClusterError: no proxy has the module, or its content has another checksum.
    """
    # Capitals are escaped in the paths of a proxy.
    path = re.sub("[A-Z]", lambda letter: "!" + letter[0].lower(), f"{module}/@v/{version}.zip")
    problems = []
    for proxy in re.split("[,|]", proxies):
        if proxy in ("", "direct", "off"):
            continue
        try:
            with _open(f"{proxy.rstrip('/')}/{path}") as answer:
                out.write_bytes(answer.read())
        except ClusterError as error:
            problems.append(str(error))
            continue
        if (found := module_checksum(out)) != h1:
            out.unlink()
            raise ClusterError(f"{module}@{version} has the checksum {found}, not {h1}")
        return
    raise ClusterError("; ".join(problems) or f"no proxy of Go modules is configured (GOPROXY={proxies})")


def module_checksum(archive: Path) -> str:
    """Return the checksum of a module's zip file as in go.sum: of the names and contents of its files."""
    with zipfile.ZipFile(archive) as content:
        lines = [f"{hashlib.sha256(content.read(name)).hexdigest()}  {name}\n" for name in sorted(content.namelist())]
    return "h1:" + base64.b64encode(hashlib.sha256("".join(lines).encode()).digest()).decode()


def _open(url: str) -> http.client.HTTPResponse:
    """Return the response to a GET. Errors name the address without its password."""
    parts = urlsplit(url)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    request = urllib.request.Request(bare)
    if parts.username:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(credentials.encode()).decode())
    context = client_context(os.environ.get("REQUESTS_CA_BUNDLE") or None)
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=ANSWER_LIMIT, context=context)
    except urllib.error.HTTPError as error:
        with error:
            raise ClusterError(f"{bare} cannot be downloaded: HTTP status {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ClusterError(f"{bare} cannot be downloaded: {reason}") from None
    return answer
