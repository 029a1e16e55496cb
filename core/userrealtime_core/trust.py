"""Trust in the servers that the products connect to by TLS: API servers, brokers, issuers of tokens.

A server is trusted if OpenSSL's default verification accepts its certificate: the chain leads to a trusted authority,
the dates hold, and the certificate names the host.

Since Python 3.13, `ssl.create_default_context` also sets `VERIFY_X509_STRICT`, which rejects certificates that lack
extensions demanded by RFC 5280: an authority without `keyUsage`, a certificate without an authority key identifier. The
authorities of Amazon EKS, of MicroK8s and of many companies are like that, libpq and the clients written in Go accept
them, and the flag makes no trusted certificate safer. So it is cleared, in every context and on every version of
Python. Ruff rejects `ssl.create_default_context` everywhere else (pyproject.toml).

Authorities are replaced while processes run: a cluster's certificate authority is rotated by a bundle of the old and
the new one. Most contexts are made for one connection and read the file each time. The others are `kept_current`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

RELOAD_S: Final = 10.0
"""Seconds between two checks of the files of authorities."""

_logger = logging.getLogger(__name__)
_kept: WeakKeyDictionary[ssl.SSLContext, tuple[Path, bytes]] = WeakKeyDictionary()
"""The file of each context, and its contents when they were loaded last."""


def client_context(cafile: str | os.PathLike[str] | None = None, cadata: str | bytes | None = None) -> ssl.SSLContext:
    """Return a context that verifies servers by the given authorities, or else by the machine's.

    `SSL_CERT_FILE` and `SSL_CERT_DIR` replace the machine's authorities.

    Raises:
        OSError: a file cannot be read, or holds no certificate.
    """
    return accept_minimal(ssl.create_default_context(cafile=cafile, cadata=cadata))  # noqa: TID251


def accept_minimal(context: ssl.SSLContext) -> ssl.SSLContext:
    """Clear `VERIFY_X509_STRICT` of a context that a library made; return the same context."""
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def kept_current(context: ssl.SSLContext, cafile: str | os.PathLike[str] | None = None) -> ssl.SSLContext:
    """Return the same context, into which `reloading` loads the authorities of a file whenever the file changes.

    Without a file it is the machine's. An authority that is removed from the file is trusted until the process ends.
    """
    path = cafile or ssl.get_default_verify_paths().cafile
    if path is not None:
        _kept[context] = Path(path), _contents(Path(path))
    return context


@contextlib.asynccontextmanager
async def reloading(interval_s: float = RELOAD_S) -> AsyncIterator[None]:
    """Keep the contexts of `kept_current` up to date while the block runs."""
    task = asyncio.create_task(_reload(interval_s), name="certificate authorities")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _reload(interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        for context, (path, loaded) in list(_kept.items()):
            contents = _contents(path)
            if contents in (loaded, b""):
                continue
            try:
                context.load_verify_locations(cafile=path)
            except (OSError, ssl.SSLError) as error:  # a file that is being written, for example
                _logger.warning("the certificate authorities in %s cannot be loaded, retrying: %s", path, error)
                continue
            _kept[context] = path, contents
            _logger.info("loaded the changed certificate authorities in %s", path)


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
