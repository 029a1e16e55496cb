"""What wakes the users' relays, and how far LISTEN carries. Pure."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class SignalDefaults:
    """What wakes users' pods. `url` is the broker's, and hidden from `repr`, since it may hold a password."""

    type: SignalType = SignalType.AUTO
    url: str = field(default="", repr=False)
    listen_range: int | None = DEFAULT_LISTEN_RANGE
    """How many pods may listen before it is said of them; None: any number."""

    def of(self, wish: str | None) -> SignalType:
        """The signal of a user whose resource has this wish, if any.

        Raises:
            SignalError: it cannot be.
        """
        signal = self.type if wish is None else SignalType(wish)
        if signal.broker and signal is not self.type:
            raise SignalError(
                f"spec.relay.signal: {signal} is not set up here (signals.type of the chart is {self.type}); "
                "leave it out, or take auto, listen or poll"
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
