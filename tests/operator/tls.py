"""A server of HTTPS that begins an answer and then does nothing any more, not even for a farewell."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PATIENCE_S = 30


@dataclass(frozen=True)
class Endpoint:
    """Where it is, and the certificate to trust."""

    url: str
    certificate: Path


@contextlib.contextmanager
def numb_server(directory: Path, chunk: bytes) -> Iterator[Endpoint]:
    """Answers one request with the head of a chunked body and this chunk of it, and reads no more."""
    certificate, key = _certificate(directory)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    over = threading.Event()

    def serve(listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        accepted.settimeout(PATIENCE_S)
        with context.wrap_socket(accepted, server_side=True) as connection:
            connection.recv(65536)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head + b"%x\r\n%s\r\n" % (len(chunk), chunk))
            over.wait(PATIENCE_S)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE_S)
        serving = threading.Thread(target=serve, args=[listening])
        serving.start()
        try:
            yield Endpoint(f"https://127.0.0.1:{listening.getsockname()[1]}", certificate)
        finally:
            over.set()
            serving.join(PATIENCE_S)


def _certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "numb")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths = directory / "numb.crt", directory / "numb.key"
    for path, content in zip(paths, (made.public_bytes(encoding), private), strict=True):
        path.write_bytes(content)
    return paths
