"""What wakes the users' relays, and how far LISTEN carries. Pure."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from userrealtime_core.environment import validate_broker_url

from .settings import BROKER_URL, FILE, Duration, Limit, Section, Variable

DEFAULT_LISTEN_RANGE = 100
"""Measured (docs/scale.md): beyond it every commit wakes so many backends that it is felt."""


class SignalError(ValueError):
    """A resource asks for a signal that is not set up."""


class SignalType(enum.StrEnum):
    """As the relay's SIGNAL."""

    AUTO = "auto"
    LISTEN = "listen"
    POLL = "poll"
    NATS = "nats"
    REDIS = "redis"
    KAFKA = "kafka"

    @property
    def broker(self) -> bool:
        """Whether signals come from a broker, to which the bridge brings them."""
        return self in (SignalType.NATS, SignalType.REDIS, SignalType.KAFKA)

    @property
    def listens(self) -> bool:
        """Whether each pod has a LISTEN of its own, as far as is known."""
        return self in (SignalType.AUTO, SignalType.LISTEN)

    @property
    def variable(self) -> str:
        """The relay's variable for the broker's URL, and its name in the user's Secret."""
        return f"{self.upper()}_URL"


@dataclass(frozen=True, config=FILE)
class SignalDefaults(Section):
    """How users' pods are notified of new events."""

    type: SignalType = SignalType.AUTO
    url: str = Field(default="", validation_alias=BROKER_URL, repr=False)
    """The broker's URL. It is hidden from `repr`, because it can contain a password."""
    listen_range: Limit = DEFAULT_LISTEN_RANGE
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
    """Which pods listen, and whether these are too many: past the range, until they are a fifth fewer again."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._users: set[Hashable] = set()
        self._past = False

    def __len__(self) -> int:
        return len(self._users)

    def see(self, user: Hashable, *, listens: bool) -> None:
        """A user's pod listens, or not any more."""
        (self._users.add if listens else self._users.discard)(user)
        if self._most is not None:
            self._past = len(self._users) > (self._most * 0.8 if self._past else self._most)

    @property
    def past(self) -> bool:
        """Whether more listen than is good."""
        return self._past
