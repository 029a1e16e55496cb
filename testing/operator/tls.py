"""An HTTPS server that begins a response and then hangs, without a TLS shutdown."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testing.patience import PATIENCE_S


@dataclass(frozen=True)
class Endpoint:
    """The URL of the server, and the certificate to trust."""

    url: str
    certificate: Path


@contextlib.contextmanager
def numb_server(authority: Path, chunk: bytes) -> Iterator[Endpoint]:
    """Answers one request with the head of a chunked body and this chunk of it, and reads no more. `authority` is that
    of the fixture."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.crt", authority / "server.key")
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
            yield Endpoint(f"https://127.0.0.1:{listening.getsockname()[1]}", authority / "ca.crt")
        finally:
            over.set()
            serving.join(PATIENCE_S)
