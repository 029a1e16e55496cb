"""Trust in the servers that the products connect to by TLS: API servers, brokers, issuers of tokens.

A server is trusted if OpenSSL's default verification accepts its certificate: the chain leads to a trusted authority,
the dates hold, and the certificate names the host.

Since Python 3.13, `ssl.create_default_context` also sets `VERIFY_X509_STRICT`, which rejects certificates that lack
extensions demanded by RFC 5280: an authority without `keyUsage`, a certificate without an authority key identifier. The
authorities of Amazon EKS, of MicroK8s and of many companies are like that, libpq and the clients written in Go accept
them, and the flag makes no trusted certificate safer. So it is cleared, in every context and on every version of
Python. Ruff rejects `ssl.create_default_context` everywhere else (pyproject.toml).
"""

from __future__ import annotations

import os
import ssl


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
