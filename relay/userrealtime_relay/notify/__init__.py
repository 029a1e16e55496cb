"""Notification of relays that their log may have grown.

A signal is a hint, after which the relay reads the log. A duplicated, wrong or late signal costs at most one empty
read, a lost one delays events until the next poll, and a new broker is one small module.

There are two kinds. A `Notifier` needs a connection to Postgres: `listen` and `poll`. The signals of a `Broker` contain
the position of the log: a relay that has this position already needs no connection to Postgres.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from userrealtime_core.secret import Secret
from userrealtime_core.wire.broadcast import Broadcast
from userrealtime_core.wire.position import LogMoved, LogPosition
from userrealtime_relay.log.log import Log

Notify = Callable[[], None]
Notifier = Callable[[Log, str, Notify], AbstractAsyncContextManager[None]]
"""`notifier(log, channel, notify)`: from entering, which returns once nothing can be missed any more, until leaving,
`notify` is called when there may be more for the user of `channel`, and when the source of signals was lost."""


class Unreachable(Exception):
    """The broker is unreachable, rejects the connection, or was lost. The message has the reason and no secret."""


OnMessage = Callable[[bytes], None]
"""Called with each message; and with an empty one once messages can arrive, since earlier ones may be lost."""
OnBroadcast = Callable[[bytes], None]
"""Called with the text of each broadcast. Broadcasts have names of their own in the broker, apart from the signals."""
Subscription = tuple[str, OnBroadcast]
"""The channel of a user's broadcasts, and what receives them."""
Publish = Callable[[Sequence[LogMoved | Broadcast]], Awaitable[None]]
"""Returns once the broker has accepted all; with none, checks that the broker answers. Raises Unreachable."""


class Broker(Protocol):
    """The interface of the modules `nats`, `redis` and `kafka`. A message is the encoded `LogPosition` of a user."""

    async def subscribe(
        self, url: Secret, user_id: str, on_message: OnMessage, broadcasts: Subscription | None = None, /
    ) -> None:
        """OnMessage of one user, and the user's broadcasts, until cancelled.

        Raises:
            Unreachable: the connection failed, or was lost later.
        """

    def publishing(self, url: Secret, /) -> AbstractAsyncContextManager[Publish]:
        """A connection to publish over. Entering raises Unreachable."""


def encode(position: LogPosition) -> bytes:
    """A message: the head, a space and the epoch."""
    return f"{position.head} {position.epoch}".encode()


def decode(message: bytes) -> LogPosition | None:
    """Return the position in a message; None if the message is invalid."""
    head, _, epoch = message.decode(errors="replace").partition(" ")
    if not (head.isascii() and head.isdecimal() and len(head) < 20):
        return None
    return LogPosition(int(head), epoch)
