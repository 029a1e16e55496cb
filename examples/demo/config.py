"""The settings of the demo, from environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SHORTEST_KEY = 32


class ConfigError(ValueError):
    """A variable is missing or invalid. The message names it."""


@dataclass(frozen=True)
class Config:
    """The validated settings.

    Attributes:
        origin: scheme, host and port of the page, in the form of the header `Origin`.
        path: the path of the page, without a slash at the end; empty at the root.
        namespace: the namespace of the users' resources.
    """

    origin: str
    path: str
    namespace: str
    port: int
    database_url: str = field(repr=False)
    session_key: str = field(repr=False)

    @property
    def secure(self) -> bool:
        """Whether cookies are restricted to TLS."""
        return self.origin.startswith("https:")

    @property
    def socket_origin(self) -> str:
        """`origin` with the scheme of a WebSocket."""
        return self.origin.replace("http", "ws", 1)


def read(environment: Mapping[str, str]) -> Config:
    """Return the settings from `PUBLIC_URL`, `DATABASE_URL`, `SESSION_KEY`, `NAMESPACE` (users) and `PORT` (8000).

    Raises:
        ConfigError: a variable is missing or invalid.
    """

    def required(name: str) -> str:
        value = environment.get(name, "").strip()
        if not value:
            raise ConfigError(f"{name} is not set")
        return value

    public = urlsplit(required("PUBLIC_URL"))
    if public.scheme not in ("http", "https") or not public.hostname or public.query or public.fragment:
        raise ConfigError("PUBLIC_URL must be the URL of the page in a browser, such as http://localhost:8081/demo")
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
