"""How users' pods are notified of new events, and the limit of LISTEN. Pure."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from userrealtime_core.environment import validate_broker_url

from .errors import ResourceError
from .settings import BROKER_URL, FILE, Duration, Limit, Section, Variable

DEFAULT_MAX_LISTENERS = 100
"""Measured (docs/scale.md): with more pods, every commit wakes so many backends that latency grows noticeably."""


class SignalError(ResourceError):
    """A resource asks for a signal that is not configured."""

    reason = "InvalidSignal"


class SignalType(enum.StrEnum):
    """The values of the relay's SIGNAL."""

    AUTO = "auto"
    LISTEN = "listen"
    POLL = "poll"
    NATS = "nats"
    REDIS = "redis"
    KAFKA = "kafka"

    @property
    def broker(self) -> bool:
        """Whether pods are notified by a broker, to which the bridge publishes."""
        return self in (SignalType.NATS, SignalType.REDIS, SignalType.KAFKA)

    @property
    def listens(self) -> bool:
        """Whether each pod has a LISTEN. With auto, it is assumed."""
        return self in (SignalType.AUTO, SignalType.LISTEN)

    @property
    def variable(self) -> str:
        """The relay's variable for the broker's URL, which is also its key in the user's Secret."""
        return f"{self.upper()}_URL"


@dataclass(frozen=True, config=FILE)
class SignalDefaults(Section):
    """How users' pods are notified of new events."""

    type: SignalType = SignalType.AUTO
    url: str = Field(default="", validation_alias=BROKER_URL, repr=False)
    """The broker's URL. It is hidden from `repr`, because it can contain a password."""
    max_listeners: Limit = DEFAULT_MAX_LISTENERS
    """The number of pods that may LISTEN before resources report it; None is any number."""
    idle_after_s: Annotated[float | None, Duration(), Variable("DATABASE_IDLE_AFTER")] = None
    """With a broker: how long pods keep an unused connection to Postgres; None is the relay's default."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str, info: ValidationInfo) -> str:
        kind = info.data.get("type")
        if kind is None or not kind.broker:
            return ""
        if (flaw := validate_broker_url(kind, url)) is not None:
            raise ValueError(flaw)
        return url

    def of(self, wish: str | None) -> SignalType:
        """Return the type for a user whose resource asks for `wish`, if for any.

        Raises:
            SignalError: the resource asks for a broker that is not configured.
        """
        signal = self.type if wish is None else SignalType(wish)
        if signal.broker and signal is not self.type:
            raise SignalError(
                f"spec.relay.signal: {signal} is not configured (signals.type of the chart is {self.type}); "
                "remove it, or set it to auto, listen or poll"
            )
        return signal


class Listeners:
    """The pods that listen. There are too many above the limit, until their number falls to 80 % of it."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._users: set[Hashable] = set()
        self._too_many = False

    def __len__(self) -> int:
        return len(self._users)

    def see(self, user: Hashable, *, listens: bool) -> None:
        """Record whether a user's pod listens."""
        (self._users.add if listens else self._users.discard)(user)
        if self._most is not None:
            self._too_many = len(self._users) > (self._most * 0.8 if self._too_many else self._most)

    @property
    def too_many(self) -> bool:
        """Whether too many pods listen."""
        return self._too_many
