"""The relay's configuration: its environment, read once, into one frozen value.

All that is wrong is reported together, each variable with what it accepts, so that one look at a pod that does not
start is enough. The value of a secret is in no message and in no repr.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from userrealtime_core.database_url import database_url_flaw
from userrealtime_core.secret import Secret

from .cors import origin_flaw
from .keys import CURRENT, PREVIOUS, TokenKeys, flaw

MAXIMUM_ID_LENGTH: Final = 253  # as userrealtime.publish checks it
LONGEST_LIFETIME: Final = 10 * 365 * 86400
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
BROKER_SCHEMES: Final = {
    "nats": ("nats", "tls"),
    "redis": ("redis", "rediss"),
    "kafka": ("kafka", "kafka+tls"),
}
"""What the URL of each broker may begin with; the latter is with TLS."""
SIGNALS: Final = ("auto", "listen", "poll", *BROKER_SCHEMES)
_INSIDE: Final = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1|[a-z][a-z0-9-]*|.+\.svc(\.cluster\.local)?")
"""Hosts that are reached within the machine or the cluster, where http will do."""


class ConfigError(Exception):
    """The environment is wrong. The message names every wrong variable and says what it accepts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Sizes are in bytes, times in seconds. docs/relay.md has the table of the variables."""

    user_id: str
    database_url: Secret
    token_keys: TokenKeys
    """None of them: HS256 is refused."""
    jwks_url: str | None
    token_issuer: str | None
    token_audience: str | None
    token_user_claim: str
    token_leeway: float
    token_max_lifetime: float
    """Of a token, from its `iat` and from now until its `exp`."""
    base_path: str
    allowed_origins: tuple[str, ...]
    """Of other sites whose pages may connect; `*` is any. Empty: no CORS, and no look at a WebSocket's Origin."""
    allow_query_token: bool
    host: str
    ws_port: int
    health_port: int
    ring_events: int
    ring_bytes: int
    max_connections: int
    max_message_bytes: int
    max_messages_per_second: int
    auth_timeout: float
    ping_interval: float
    signal: str
    broker_url: Secret | None
    """Of the broker that `signal` names, if it names one."""
    poll_interval: float | None
    """None: as suits the signal."""
    idle_after: float
    """With a broker: how long a connection to Postgres is kept without use."""
    send_timeout: float
    drain_timeout: float
    instance: str
    """This pod among those of the user."""
    announce_url: str | None
    """Where the activators hear that this relay listens. Taken only with `pod_ip` and a token key of the user's own."""
    pod_ip: str | None
    log_level: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Config:
        """Read the configuration.

        Raises:
            ConfigError: one or more variables are missing or wrong.
        """
        read = Reader(environment)
        signal = read.choice("SIGNAL", "auto", SIGNALS)
        config = cls(
            user_id=read.user_id("USER_ID"),
            database_url=read.database_url("DATABASE_URL"),
            token_keys=read.token_keys("TOKEN_KEY_DIR", "JWKS_URL"),
            jwks_url=read.jwks_url("JWKS_URL"),
            token_issuer=read.text("TOKEN_ISSUER", "") or None,
            token_audience=read.text("TOKEN_AUDIENCE", "") or None,
            token_user_claim=read.text("TOKEN_USER_CLAIM", "sub"),
            token_leeway=read.seconds("TOKEN_LEEWAY", 5, 0, 300),
            token_max_lifetime=read.seconds("TOKEN_MAX_LIFETIME", 86400, 60, LONGEST_LIFETIME),
            base_path=read.base_path("BASE_PATH"),
            allowed_origins=read.origins("ALLOWED_ORIGINS"),
            allow_query_token=read.choice("ALLOW_QUERY_TOKEN", "false", ("true", "false")) == "true",
            host=read.text("HOST", "0.0.0.0"),  # noqa: S104 (a pod serves its network)
            ws_port=read.integer("WS_PORT", 8080, 0, 65535),
            health_port=read.integer("HEALTH_PORT", 3000, 0, 65535),
            ring_events=read.integer("RING_EVENTS", 2048, 1, 1_000_000),
            ring_bytes=read.integer("RING_BYTES", 4 << 20, 1, 1 << 30),
            max_connections=read.integer("MAX_CONNECTIONS", 100, 1, 100_000),
            max_message_bytes=read.integer("MAX_MESSAGE_BYTES", 64 << 10, 1, 16 << 20),
            max_messages_per_second=read.integer("MAX_MESSAGES_PER_SECOND", 100, 1, 100_000),
            auth_timeout=read.seconds("AUTH_TIMEOUT", 10, 0.1, 300),
            ping_interval=read.seconds("PING_INTERVAL", 20, 0.1, 3600),
            signal=signal,
            broker_url=read.broker_url(signal) if signal in BROKER_SCHEMES else None,
            poll_interval=read.seconds("POLL_INTERVAL", 15, 0.1, 3600) if read.text("POLL_INTERVAL", "") else None,
            idle_after=read.seconds("DATABASE_IDLE_AFTER", 30, 0, 3600),
            send_timeout=read.seconds("SEND_TIMEOUT", 30, 0.1, 3600),
            drain_timeout=read.seconds("DRAIN_TIMEOUT", 20, 0, 3600),
            instance=read.text("INSTANCE", socket.gethostname())[:253],
            announce_url=read.service_url("ANNOUNCE_URL"),
            pod_ip=read.text("POD_IP", "") or None,
            log_level=read.choice("LOG_LEVEL", "info", LOG_LEVELS),
        )
        read.check()
        return config

    def paths(self, path: str) -> tuple[str, ...]:
        """Where on the public port a path is served: under the base path too, which is then the last of them."""
        return (path, self.base_path + path) if self.base_path else (path,)


class Reader:
    """Reads variables and collects what is wrong with them. After a problem, a value of the right type goes on."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.problems: list[str] = []

    def check(self) -> None:
        """
        Raises:
            ConfigError: something was wrong.
        """
        if self.problems:
            raise ConfigError("the environment is wrong:\n" + "\n".join(f"  {problem}" for problem in self.problems))

    def text(self, name: str, default: str) -> str:
        # An empty variable is an unset one: templates leave such behind.
        return self._environment.get(name, "") or default

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.text(name, str(default))
        if re.fullmatch(r"[0-9]{1,12}", text) and low <= int(text) <= high:
            return int(text)
        self.problems.append(f"{name}: {text!r} is not a whole number from {low} to {high}")
        return default

    def seconds(self, name: str, default: float, low: float, high: float) -> float:
        text = self.text(name, str(default))
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text) and low <= float(text) <= high:
            return float(text)
        self.problems.append(f"{name}: {text!r} is not a number of seconds from {low} to {high}")
        return default

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        text = self.text(name, default)
        if text in choices:
            return text
        self.problems.append(f"{name}: {text!r} is not one of {', '.join(choices)}")
        return default

    def user_id(self, name: str) -> str:
        text = self.text(name, "")
        if not text:
            self.problems.append(f"{name}: required: the id of the one user served here")
        elif len(text) > MAXIMUM_ID_LENGTH or re.search(r"[\x00-\x1f\x7f]", text) or not _is_utf8(text):
            self.problems.append(
                f"{name}: must be 1 to {MAXIMUM_ID_LENGTH} characters of UTF-8 without control characters, "
                "as userrealtime.publish accepts"
            )
        return text

    def database_url(self, name: str) -> Secret:
        text = self.text(name, "")
        wanted = "a URL like postgresql://role:password@host:5432/database, a direct connection (no pooler)"
        if not text:
            self.problems.append(f"{name}: required: {wanted}")
        else:
            try:
                valid = urlsplit(text).scheme in ("postgresql", "postgres")
            except ValueError:
                valid = False
            if not valid:
                self.problems.append(f"{name}: must be {wanted} (its value is not shown here)")
            elif (problem := database_url_flaw(text)) is not None:
                self.problems.append(f"{name}: {problem}")
        return Secret(text)

    def broker_url(self, broker: str) -> Secret:
        """That of one of `BROKER_SCHEMES`, from the variable of its name."""
        name = f"{broker.upper()}_URL"
        text = self.text(name, "")
        if (problem := broker_url_flaw(broker, text)) is not None:
            self.problems.append(f"{name}: {problem}")
        return Secret(text)

    def token_keys(self, directory_name: str, jwks_name: str) -> TokenKeys:
        current, previous = self.text(CURRENT, ""), self.text(PREVIOUS, "")
        directory = self.text(directory_name, "")
        if directory:
            return self._key_directory(directory_name, directory, given=bool(current or previous))
        if not current and (previous or not self.text(jwks_name, "")):
            self.problems.append(
                f"{CURRENT}: required: the HS256 key of this user's tokens (or {directory_name}, or {jwks_name})"
            )
        keys = {name: key for name, key in ((CURRENT, current), (PREVIOUS, previous)) if key}
        self.problems += [f"{name}: {problem}" for name, key in keys.items() if (problem := flaw(key)) is not None]
        return TokenKeys(*keys.values())

    def _key_directory(self, name: str, directory: str, *, given: bool) -> TokenKeys:
        if given:
            self.problems.append(f"{name}: set either it, or {CURRENT} and {PREVIOUS}")
        try:
            return TokenKeys.in_directory(Path(directory))
        except (OSError, ValueError) as error:
            self.problems.append(f"{name}: must be a directory with a file {CURRENT}, and perhaps {PREVIOUS}: {error}")
            return TokenKeys()

    def jwks_url(self, name: str) -> str | None:
        text = self.text(name, "")
        if not text:
            return None
        try:
            parts = urlsplit(text)
            valid = (
                re.fullmatch(r"[!-~]+", text) is not None
                and parts.hostname is not None
                and "@" not in parts.netloc
                and not parts.fragment
                and parts.port != 0
                and (
                    parts.scheme == "https"
                    or (parts.scheme == "http" and _INSIDE.fullmatch(parts.hostname) is not None)
                )
            )
        except ValueError:
            valid = False
        if not valid:
            self.problems.append(
                f"{name}: must be a URL like https://issuer.example/.well-known/jwks.json, without a password; http "
                "only for loopback or a Service of the cluster (its value is not shown here)"
            )
        return text

    def service_url(self, name: str) -> str | None:
        text = self.text(name, "")
        if text and not re.fullmatch(r"http://[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9./-]*)?", text):
            self.problems.append(f"{name}: must be an http:// URL of a Service of the cluster")
        return text or None

    def origins(self, name: str) -> tuple[str, ...]:
        origins = tuple(origin.strip() for origin in self.text(name, "").split(",") if origin.strip())
        self.problems += [f"{name}: {problem}" for problem in map(origin_flaw, origins) if problem is not None]
        return origins

    def base_path(self, name: str) -> str:
        text = self.text(name, "")
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", text):
            self.problems.append(f"{name}: {text!r} is not a path like /alice (no slash at the end), or empty")
        return text


def broker_url_flaw(broker: str, url: str) -> str | None:
    """What is wrong with the URL of one of `BROKER_SCHEMES`, without quoting it; None if nothing is."""
    schemes = BROKER_SCHEMES[broker]
    if all(_is_server(each, schemes) for each in url.split(",")):
        return None
    wanted = (
        f"a URL like {schemes[0]}://user:password@host:port, or several with commas between; "
        f"{schemes[1]}:// is with TLS"
    )
    if not url:
        return f"required with {broker} as signal: {wanted}"
    return f"must be {wanted}. What is special in user and password is percent-encoded (the value is not shown here)"


def _is_server(url: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
