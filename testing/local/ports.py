"""Ports for the servers of tests."""

from __future__ import annotations

import contextlib
import secrets
import socket
from typing import Final

PORTS: Final = range(10_000, 30_000)
"""Below the ports of NodePort Services, and below those that Linux gives to outgoing connections (from 32,768)."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which no program listens.

    No outgoing connection takes it before the caller listens. The choice is random, because several processes choose.
    """
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
