"""The settings of relays that the operator sets in the environment of every pod. docs/relay.md has their table.

The relay reads them when it starts. The activator reads the same ones to accept the same tokens and origins, and the
operator to check its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .auth.settings import AuthSettings
from .environment import BROKER_SCHEMES, LOG_LEVELS, Reader

LONGEST_LIFETIME: Final = 10 * 365 * 86400
SIGNALS: Final = ("auto", "listen", "poll", *BROKER_SCHEMES)
PROTOCOLS: Final = (
    "actioncable",
    "durable-streams",
    "pusher",
    "socketio",
    "supabase",
)
"""The protocols of other systems that a relay can serve in addition to its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings(AuthSettings):
    """Sizes are in bytes, times in seconds."""

    base_path: str
    allowed_origins: tuple[str, ...]
    """Other sites whose pages may connect; `*` is any. Empty: no CORS, and the Origin of a WebSocket is not checked."""
    allow_query_token: bool
    protocols: tuple[str, ...]
    """Which of `PROTOCOLS` are served. Each one is a further entrance, so there is none by default."""
    ring_events: int
    ring_bytes: int
    max_connections: int
    max_message_bytes: int
    max_messages_per_second: int
    max_broadcasts_per_second: int
    """Of all clients together; 0: clients may not send broadcasts."""
    auth_timeout: float
    ping_interval: float
    signal: str
    poll_interval: float | None
    """None: the default of the signal."""
    idle_after: float
    """With a broker: how long a connection to Postgres is kept without use."""
    send_timeout: float
    drain_timeout: float
    log_level: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> RelaySettings:
        """Read the settings.

        Raises:
            ConfigError: one or more variables are invalid.
        """
        read = Reader(environment)
        settings = RelaySettings.read(read)
        read.check()
        return settings

    @staticmethod
    def read(read: Reader) -> RelaySettings:
        """Read the settings. The reader collects the problems."""
        return RelaySettings(
            jwks_url=read.jwks_url("JWKS_URL"),
            allow_user_keys=read.user_keys("ALLOW_USER_KEYS", "JWKS_URL"),
            token_issuer=read.text("TOKEN_ISSUER", "") or None,
            token_audience=read.audience("TOKEN_AUDIENCE", "JWKS_URL"),
            token_user_claim=read.text("TOKEN_USER_CLAIM", "sub"),
            token_leeway=read.seconds("TOKEN_LEEWAY", 5, 0, 300),
            token_max_lifetime=read.seconds("TOKEN_MAX_LIFETIME", 86400, 60, LONGEST_LIFETIME),
            base_path=read.base_path("BASE_PATH"),
            allowed_origins=read.origins("ALLOWED_ORIGINS"),
            allow_query_token=read.choice("ALLOW_QUERY_TOKEN", "false", ("true", "false")) == "true",
            protocols=read.choices("PROTOCOLS", PROTOCOLS),
            ring_events=read.integer("RING_EVENTS", 2048, 1, 1_000_000),
            ring_bytes=read.integer("RING_BYTES", 4 << 20, 1, 1 << 30),
            max_connections=read.integer("MAX_CONNECTIONS", 100, 1, 100_000),
            max_message_bytes=read.integer("MAX_MESSAGE_BYTES", 64 << 10, 1, 16 << 20),
            max_messages_per_second=read.integer("MAX_MESSAGES_PER_SECOND", 100, 1, 100_000),
            max_broadcasts_per_second=read.integer("MAX_BROADCASTS_PER_SECOND", 0, 0, 10_000),
            auth_timeout=read.seconds("AUTH_TIMEOUT", 10, 0.1, 300),
            ping_interval=read.seconds("PING_INTERVAL", 20, 0.1, 3600),
            signal=read.choice("SIGNAL", "auto", SIGNALS),
            poll_interval=read.seconds("POLL_INTERVAL", 15, 0.1, 3600) if read.text("POLL_INTERVAL", "") else None,
            idle_after=read.seconds("DATABASE_IDLE_AFTER", 30, 0, 3600),
            send_timeout=read.seconds("SEND_TIMEOUT", 30, 0.1, 3600),
            drain_timeout=read.seconds("DRAIN_TIMEOUT", 20, 0, 3600),
            log_level=read.choice("LOG_LEVEL", "info", LOG_LEVELS),
        )
