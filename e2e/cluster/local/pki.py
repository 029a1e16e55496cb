"""Certificates and kubeconfigs of the local cluster, made with openssl."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.provider import run

DAYS = 365


@dataclass(frozen=True)
class Identity:
    """A certificate's file name, subject and subject alternative names."""

    name: str
    subject: str
    names: Sequence[str]


def make(directory: Path, identities: Sequence[Identity]) -> None:
    """An authority, a certificate for each identity, and the key that signs service account tokens.

    What is there already is kept.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (directory / "ca.crt").exists():
        _openssl(
            directory,
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", "ca.key", "-out", "ca.crt", "-days", str(DAYS), "-subj", "/CN=userrealtime-e2e"),
        )
    if not (directory / "sa.pub").exists():
        _openssl(directory, "genrsa", "-out", "sa.key", "2048")
        _openssl(directory, "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
    for identity in identities:
        if not (directory / f"{identity.name}.crt").exists():
            _sign(directory, identity)


def kubeconfig(server: str, authority: Path, certificate: Path, key: Path) -> str:
    """A kubeconfig (JSON, which is YAML) that holds the certificates themselves."""
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


def _sign(directory: Path, identity: Identity) -> None:
    name = identity.name
    extensions = directory / f"{name}.ext"
    extensions.write_text(f"subjectAltName={','.join(identity.names)}\nextendedKeyUsage=serverAuth,clientAuth\n")
    _openssl(
        directory,
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", identity.subject),
    )
    _openssl(
        directory,
        *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-days", str(DAYS), "-extfile", extensions.name, "-out", f"{name}.crt"),
    )


def _openssl(directory: Path, *args: str) -> None:
    # openssl has no option for a directory, and names are given relative to it.
    run("env", "-C", str(directory), "openssl", *args, timeout=30)


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
