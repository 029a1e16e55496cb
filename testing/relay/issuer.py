"""An issuer that signs tokens with key pairs, and publishes their public keys on loopback."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from testing.relay.harness import USER

RSA: Final = rsa.generate_private_key(65537, 2048)
OTHER_RSA: Final = rsa.generate_private_key(65537, 2048)
EC: Final = ec.generate_private_key(ec.SECP256R1())
ED25519: Final = ed25519.Ed25519PrivateKey.generate()

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def jwk(key: PrivateKey, kid: str | None, **fields: Any) -> dict[str, Any]:
    """The public key in the format of a key set."""
    made: dict[str, Any]
    if isinstance(key, rsa.RSAPrivateKey):
        made = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        made = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        made = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    made.pop("key_ops", None)
    return {**made, **({} if kid is None else {"kid": kid}), **fields}


def sign(key: PrivateKey, kid: str | None, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """Return a token that is valid unless `claims` or `header` change it."""
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = "RS256"
    else:
        algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "EdDSA"
    return jwt.encode(
        {"sub": USER, "exp": int(time.time()) + 3600, **claims},
        key,
        algorithm=algorithm,
        headers={**({} if kid is None else {"kid": kid}), **(header or {})},
    )


class Endpoint:
    """A server with configurable responses, on an address of loopback of IPv4 or IPv6."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.requests: list[str] = []
        self.status = 200
        self.body = b""
        self.headers = ""
        self.silent = False
        self.port = 0
        self._server: asyncio.Server | None = None

    def publish(self, *keys: dict[str, Any]) -> None:
        self.body = json.dumps({"keys": keys}).encode()

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/keys?all=1"

    async def start(self, context: ssl.SSLContext | None) -> None:
        self._server = await asyncio.start_server(self._answer, self.host, 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Refuse further connections. Their port is not used again."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if not self.silent:
                head = f"HTTP/1.1 {self.status} Such\r\nContent-Length: {len(self.body)}\r\n{self.headers}\r\n"
                writer.write(head.encode() + self.body)
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def endpoint(
    *keys: dict[str, Any], context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Endpoint]:
    made = Endpoint(host)
    made.publish(*keys)
    await made.start(context)
    try:
        yield made
    finally:
        made.stop()
