"""The bridge's configuration: its environment, read once. docs/signals.md has the table of the variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from userrealtime_core.environment import BROKER_SCHEMES, LOG_LEVELS, Reader
from userrealtime_core.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Times are in seconds."""

    database_url: Secret
    broker: str
    broker_url: Secret
    host: str
    health_port: int
    poll_interval: float
    log_level: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Config:
        """Read the configuration.

        Raises:
            ConfigError: one or more variables are missing or wrong.
        """
        read = Reader(environment)
        broker = read.choice("SIGNAL", "", tuple(BROKER_SCHEMES))
        config = cls(
            database_url=read.database_url("DATABASE_URL"),
            broker=broker,
            broker_url=read.broker_url(broker) if broker else Secret(""),
            host=read.text("HOST", ""),  # all addresses, of IPv4 and IPv6
            health_port=read.integer("HEALTH_PORT", 3000, 0, 65535),
            poll_interval=read.seconds("POLL_INTERVAL", 10, 0.1, 3600),
            log_level=read.choice("LOG_LEVEL", "info", LOG_LEVELS),
        )
        read.check()
        return config
