"""The configuration of the broadcast API: its environment, read once. docs/publish.md describes it."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from userrealtime_core.environment import LOG_LEVELS, Reader
from userrealtime_core.secret import Secret

TOKEN: Final = "BROADCAST_TOKEN"  # noqa: S105  (the name of a variable)
SHORTEST_TOKEN: Final = 32
MAX_TOKENS: Final = 8


@dataclass(frozen=True, slots=True)
class ServerTokens:
    """The tokens that applications send. Only their hashes are kept."""

    digests: tuple[bytes, ...]

    @classmethod
    def parse(cls, text: str) -> ServerTokens:
        """Read tokens, one in a line. An application may use the old one while another one replaces it.

        Raises:
            ValueError: a token is invalid. The message does not contain it.
        """
        tokens = text.split()
        if not 1 <= len(tokens) <= MAX_TOKENS:
            raise ValueError(f"must be 1 to {MAX_TOKENS} tokens, one in a line, such as `openssl rand -hex 32` prints")
        for token in tokens:
            if len(token) < SHORTEST_TOKEN or not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):
                raise ValueError(
                    f"each token must have at least {SHORTEST_TOKEN} characters, which are letters, digits or one of "
                    "._~+/=-; `openssl rand -hex 32` prints one (its value is not shown here)"
                )
        return cls(tuple(_digest(token) for token in tokens))

    def accept(self, authorization: str) -> bool:
        """Return whether an Authorization header has one of the tokens. The time does not depend on what is wrong."""
        scheme, _, token = authorization.partition(" ")
        digest = _digest(token.strip())
        found = [hmac.compare_digest(digest, known) for known in self.digests]
        return any(found) and scheme.lower() == "bearer"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Times are in seconds."""

    database_url: Secret
    tokens: ServerTokens
    host: str
    port: int
    health_port: int
    log_level: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Config:
        """Read the configuration.

        Raises:
            ConfigError: one or more variables are missing or invalid.
        """
        read = Reader(environment)
        config = cls(
            database_url=read.database_url("DATABASE_URL"),
            tokens=_tokens(read),
            host=read.text("HOST", ""),  # all addresses, of IPv4 and IPv6
            port=read.integer("PORT", 8080, 0, 65535),
            health_port=read.integer("HEALTH_PORT", 3000, 0, 65535),
            log_level=read.choice("LOG_LEVEL", "info", LOG_LEVELS),
        )
        read.check()
        return config


def _tokens(read: Reader) -> ServerTokens:
    text = read.credential(TOKEN)
    if text is not None:
        try:
            return ServerTokens.parse(text)
        except ValueError as error:
            read.problems.append(f"{TOKEN}: {error}")
    return ServerTokens(())
