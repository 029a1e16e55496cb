"""What the demo is told by its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SHORTEST_KEY = 32


class ConfigError(ValueError):
    """A variable is missing or wrong; the message names it."""


@dataclass(frozen=True)
class Config:
    """The environment, checked.

    Attributes:
        origin: scheme, host and port of the page, as a browser writes them into `Origin`.
        path: where the page is below that, without a slash at the end; empty at the root.
        namespace: of the users' resources.
    """

    origin: str
    path: str
    namespace: str
    port: int
    database_url: str = field(repr=False)
    session_key: str = field(repr=False)

    @property
    def secure(self) -> bool:
        """Whether cookies may be bound to TLS."""
        return self.origin.startswith("https:")

    @property
    def socket_origin(self) -> str:
        """`origin` as a WebSocket's URL begins."""
        return self.origin.replace("http", "ws", 1)


def read(environment: Mapping[str, str]) -> Config:
    """The configuration in `PUBLIC_URL`, `DATABASE_URL`, `SESSION_KEY`, `NAMESPACE` (users) and `PORT` (8000).

    Raises:
        ConfigError: one is missing or wrong.
    """

    def required(name: str) -> str:
        value = environment.get(name, "").strip()
        if not value:
            raise ConfigError(f"{name} is not set")
        return value

    public = urlsplit(required("PUBLIC_URL"))
    if public.scheme not in ("http", "https") or not public.hostname or public.query or public.fragment:
        raise ConfigError("PUBLIC_URL must be where people reach the page, such as http://localhost:8081/demo")
    key = required("SESSION_KEY")
    if len(key) < SHORTEST_KEY:
        raise ConfigError(f"SESSION_KEY must have at least {SHORTEST_KEY} random characters")
    port = environment.get("PORT", "8000")
    if not port.isascii() or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError("PORT must be a number from 1 to 65535")
    return Config(
        origin=f"{public.scheme}://{public.netloc}",
        path=public.path.rstrip("/"),
        namespace=environment.get("NAMESPACE", "users"),
        port=int(port),
        database_url=required("DATABASE_URL"),
        session_key=key,
    )
