"""What wakes the relay when there may be more in the log.

A signal is a hint: whoever is woken reads the log. So a signal that is doubled, wrong or late costs at most one empty
read, a lost one is made up for by the safety poll, and a new broker is one small module.

There are two kinds. What comes with a connection to Postgres is a `Notifier`: `listen` and `poll`. What comes from a
`Broker` says where the log stands, so that a relay that knows may go on without a connection to Postgres.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from userrealtime_core.secret import Secret
from userrealtime_core.wire.position import LogMoved, LogPosition
from userrealtime_relay.log.log import Log

Notify = Callable[[], None]
Notifier = Callable[[Log, str, Notify], AbstractAsyncContextManager[None]]
"""`notifier(log, channel, notify)`: from entering, which returns once nothing can be missed any more, until leaving,
`notify` is called when there may be more for the user of `channel`, and when the source of signals was lost."""


class Unreachable(Exception):
    """A broker is away, refuses or was lost. The message says which of these, and holds no secret."""


OnMessage = Callable[[bytes], None]
"""Called with each message as it came; with an empty one once messages may come: earlier ones may be lost."""
Publish = Callable[[Sequence[LogMoved]], Awaitable[None]]
"""Returns once the broker has them; with none, that it still answers is all. Raises Unreachable."""


class Broker(Protocol):
    """The interface of the modules `nats`, `redis` and `kafka`. A message is the encoded `LogPosition` of a user."""

    async def subscribe(self, url: Secret, user_id: str, on_message: OnMessage, /) -> None:
        """OnMessage of one user, until cancelled.

        Raises:
            Unreachable: also when it was lost later.
        """

    def publishing(self, url: Secret, /) -> AbstractAsyncContextManager[Publish]:
        """A connection to publish over. Entering raises Unreachable."""


def encode(position: LogPosition) -> bytes:
    """A message: the head, a space and the epoch."""
    return f"{position.head} {position.epoch}".encode()


def decode(message: bytes) -> LogPosition | None:
    """What a message says; None if it says nothing that can be understood."""
    head, _, epoch = message.decode(errors="replace").partition(" ")
    if not (head.isascii() and head.isdecimal() and len(head) < 20):
        return None
    return LogPosition(int(head), epoch)
