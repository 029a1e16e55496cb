"""Certificates and kubeconfigs of the local cluster and of tests, made with openssl."""

import base64
import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testing.cluster.process import run

DAYS = 365


@dataclass(frozen=True)
class Identity:
    """A certificate's file name, subject and subject alternative names."""

    name: str
    subject: str
    names: Sequence[str]


class Extensions(enum.Enum):
    """The extensions of an authority and of the certificates that it signs."""

    COMPLETE = "complete"
    """The extensions that RFC 5280 requires: keyUsage, and the identifiers of the keys."""
    MINIMAL = "minimal"
    """The few extensions of an Amazon EKS cluster's authority: OpenSSL accepts them, but not in its strict mode."""


_IDENTIFIERS = {
    # Explicit in both cases, because versions of openssl add different extensions by default.
    Extensions.COMPLETE: ("subjectKeyIdentifier = hash", "authorityKeyIdentifier = keyid"),
    Extensions.MINIMAL: ("subjectKeyIdentifier = none", "authorityKeyIdentifier = none"),
}
_AUTHORITY = {
    Extensions.COMPLETE: ("basicConstraints = critical,CA:TRUE", "keyUsage = critical,keyCertSign,cRLSign"),
    Extensions.MINIMAL: ("basicConstraints = critical,CA:TRUE",),
}
_SIGNED = {
    Extensions.COMPLETE: ("basicConstraints = critical,CA:FALSE", "keyUsage = critical,digitalSignature"),
    Extensions.MINIMAL: (),
}


def make(directory: Path, identities: Sequence[Identity], extensions: Extensions = Extensions.COMPLETE) -> None:
    """Create an authority, a certificate for each identity, and the key that signs service account tokens.

    Files that exist are kept.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (directory / "ca.crt").exists():
        lines = ("[req]", "distinguished_name = subject", "[subject]", "[authority]")
        (directory / "ca.cnf").write_text(
            "\n".join((*lines, *_AUTHORITY[extensions], *_IDENTIFIERS[extensions])) + "\n"
        )
        _openssl(
            directory,
            *("req", "-x509", "-config", "ca.cnf", "-extensions", "authority"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", "ca.key", "-out", "ca.crt", "-days", str(DAYS), "-subj", "/CN=userrealtime-e2e"),
        )
    if not (directory / "sa.pub").exists():
        _openssl(directory, "genrsa", "-out", "sa.key", "2048")
        _openssl(directory, "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
    for identity in identities:
        if not (directory / f"{identity.name}.crt").exists():
            _sign(directory, identity, extensions)


def kubeconfig(server: str, authority: Path, certificate: Path, key: Path) -> str:
    """Return a kubeconfig (JSON, which is YAML) with embedded certificates."""
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "local", "cluster": {"server": server, "certificate-authority-data": _encoded(authority)}}
        ],
        "users": [
            {
                "name": "local",
                "user": {"client-certificate-data": _encoded(certificate), "client-key-data": _encoded(key)},
            }
        ],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": "local"}}],
        "current-context": "local",
    }
    return json.dumps(config, indent=1)


def _sign(directory: Path, identity: Identity, extensions: Extensions) -> None:
    name = identity.name
    names = f"subjectAltName = {','.join(identity.names)}"
    lines = (names, "extendedKeyUsage = serverAuth,clientAuth", *_SIGNED[extensions], *_IDENTIFIERS[extensions])
    (directory / f"{name}.ext").write_text("\n".join(lines) + "\n")
    _openssl(
        directory,
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", identity.subject),
    )
    _openssl(
        directory,
        *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-days", str(DAYS), "-extfile", f"{name}.ext", "-out", f"{name}.crt"),
    )


def _openssl(directory: Path, *args: str) -> None:
    # openssl has no option for a directory, and names are given relative to it.
    run("env", "-C", str(directory), "openssl", *args, timeout=30)


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
