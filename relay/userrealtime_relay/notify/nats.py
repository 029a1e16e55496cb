"""NATS without JetStream: a message without a subscriber is dropped, which is sufficient for a signal.

The subject is `userrealtime.` and a hash of the user: a user id may contain characters that a subject must not.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, NoServersError

from userrealtime_core.secret import Secret
from userrealtime_core.trust import client_context
from userrealtime_core.wire.broadcast import Broadcast
from userrealtime_core.wire.position import LogMoved
from userrealtime_relay.log.log import channel

from . import OnMessage, Publish, Subscription, Unreachable, encode

CONNECT_TIMEOUT: Final = 5
FLUSH_TIMEOUT: Final = 5
CLOSE_TIMEOUT: Final = 2
PING_INTERVAL: Final = 10
"""Seconds. A server that has not answered two pings counts as lost."""
PENDING_MESSAGES: Final = 1024


def subject(user_id: str) -> str:
    """Where signals of one user are published."""
    return f"userrealtime.{channel(user_id)}"


async def subscribe(url: Secret, user_id: str, on_message: OnMessage, broadcasts: Subscription | None = None) -> None:
    """As `Broker.subscribe`."""

    async def heard(message: Msg) -> None:
        on_message(message.data)

    async with _connected(url) as (client, lost):
        with _failures():
            await client.subscribe(subject(user_id), cb=heard, pending_msgs_limit=PENDING_MESSAGES)
            if broadcasts is not None:
                name, on_broadcast = broadcasts

                async def heard_broadcast(message: Msg) -> None:
                    on_broadcast(message.data)

                await client.subscribe(f"userrealtime.{name}", cb=heard_broadcast, pending_msgs_limit=PENDING_MESSAGES)
            await client.flush(FLUSH_TIMEOUT)
        on_message(b"")
        await lost.wait()
        raise Unreachable("the connection was lost")


@asynccontextmanager
async def publishing(url: Secret) -> AsyncIterator[Publish]:
    """As `Broker.publishing`."""
    async with _connected(url) as (client, _):

        async def publish(messages: Sequence[LogMoved | Broadcast]) -> None:
            with _failures():
                for message in messages:
                    if isinstance(message, Broadcast):
                        await client.publish(f"userrealtime.{message.channel}", message.message.encode())
                    else:
                        await client.publish(subject(message.user_id), encode(message.position))
                await client.flush(FLUSH_TIMEOUT)

        yield publish


class _Client(Client):
    """A client that does not send the password to a server without TLS if the URL asks for TLS.

    nats-py sends it, and has no public hook between the server's INFO and the client's CONNECT: so a private method is
    overridden. `tests/relay/test_contracts.py` fails if a version of nats-py does not call it.
    """

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """The context for a server that requires TLS. It is created only then, since it takes memory."""
        return client_context()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        server = self._current_server
        if initial_connection and server is not None and server.uri.scheme == "tls" and not info.get("tls_required"):
            raise Error("the URL asks for TLS, and the server has none, or does not require it")
        await super()._process_info(info, initial_connection)


@asynccontextmanager
async def _connected(url: Secret) -> AsyncIterator[tuple[Client, asyncio.Event]]:
    """A client, and an event that is set when its connection was lost. It does not reconnect: the caller does."""
    client, lost = _Client(), asyncio.Event()
    reasons: list[Exception] = []

    async def closed() -> None:
        lost.set()

    async def failed(error: Exception) -> None:
        reasons[:] = [error]

    try:
        with _failures(reasons):
            await client.connect(
                url.reveal().split(","),
                **_credentials(url),
                name="userrealtime",
                allow_reconnect=False,
                max_reconnect_attempts=1,  # of each server named in the URL; 0 would mean no limit
                reconnect_time_wait=0,
                connect_timeout=CONNECT_TIMEOUT,
                ping_interval=PING_INTERVAL,
                max_outstanding_pings=2,
                closed_cb=closed,
                error_cb=failed,
            )
        yield client, lost
    finally:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await client.close()
        except (Error, OSError, TimeoutError):
            pass  # it is lost in any case


def _credentials(url: Secret) -> dict[str, Any]:
    """The decoded credentials of the first server, for all servers: the library would not decode them."""
    first = urlsplit(url.reveal().split(",")[0])
    if first.username is None:
        return {}
    if first.password is None:
        return {"token": unquote(first.username)}
    return {"user": unquote(first.username), "password": unquote(first.password)}


@contextmanager
def _failures(reasons: Sequence[Exception] = ()) -> Iterator[None]:
    try:
        yield
    except (Error, OSError, TimeoutError) as error:
        # After any error, the client reports only that no server remains.
        reason = reasons[-1] if reasons and isinstance(error, NoServersError) else error
        raise Unreachable(f"{type(reason).__name__}: {reason}") from None
    # While the client flushes, it takes a cancellation for the end of the flush, and continues.
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError
