"""The relay's configuration: its environment, read once, into one frozen value.

`userrealtime_core.relay_settings` has the settings that all pods may share; this module adds those of one pod.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields

from userrealtime_core.auth.keys import TokenKeys
from userrealtime_core.environment import BROKER_SCHEMES, Reader
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_core.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(RelaySettings):
    """Sizes are in bytes, times in seconds. docs/relay.md has the table of the variables."""

    user_id: str
    database_url: Secret
    token_keys: TokenKeys
    """Without any key, HS256 is rejected."""
    host: str
    ws_port: int
    health_port: int
    broker_url: Secret | None
    """The URL of the broker, if `signal` is one."""
    instance: str
    """The name of this pod."""
    announce_url: str | None
    """Where the relay registers its address with the activators. Needs `pod_ip` and a token key of the user."""
    pod_ip: str | None
    broadcast_to_pods: bool
    """Whether the user has other pods, to which broadcasts of clients are sent."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Config:
        """Read the configuration.

        Raises:
            ConfigError: one or more variables are missing or wrong.
        """
        read = Reader(environment)
        settings = RelaySettings.read(read)
        config = cls(
            user_id=read.user_id("USER_ID"),
            database_url=read.database_url("DATABASE_URL"),
            token_keys=read.token_keys("TOKEN_KEY_DIR", "JWKS_URL"),
            host=read.text("HOST", ""),  # all addresses, of IPv4 and IPv6
            ws_port=read.integer("WS_PORT", 8080, 0, 65535),
            health_port=read.integer("HEALTH_PORT", 3000, 0, 65535),
            broker_url=read.broker_url(settings.signal) if settings.signal in BROKER_SCHEMES else None,
            instance=read.text("INSTANCE", socket.gethostname())[:253],
            announce_url=read.service_url("ANNOUNCE_URL"),
            pod_ip=read.text("POD_IP", "") or None,
            broadcast_to_pods=read.choice("BROADCAST_TO_PODS", "false", ("true", "false")) == "true",
            **{each.name: getattr(settings, each.name) for each in fields(settings)},
        )
        read.check()
        return config

    def paths(self, path: str) -> tuple[str, ...]:
        """Return the paths that serve `path` on the public port: itself and, last, the same under the base path."""
        return (path, self.base_path + path) if self.base_path else (path,)
