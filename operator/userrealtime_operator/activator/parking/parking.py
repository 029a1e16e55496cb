"""Decides which connections are parked, and for how long. The connections stay in the tasks that serve them.

A connection is parked if its user is parked and its client has all events: it gives a cursor and an epoch, which are
the head and the epoch of the log, or the cursor 0 if the user has no log yet. Any other connection is forwarded to a
pod, for which the user is woken.

A parked connection ends in one of three ways: the client leaves, the token expires, or the client needs the pod. In the
last case, the request to the pod has the position and the newest token of the client.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from userrealtime_core.relay_settings import RelaySettings
from userrealtime_core.wire.connect_request import ConnectRequest
from userrealtime_core.wire.longpoll import parse_timeout
from userrealtime_core.wire.position import LogState
from userrealtime_core.wire.session import PendingLookup, Session
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.proxy.admission import Admitted
from userrealtime_operator.activator.proxy.connection import ClientConnection
from userrealtime_operator.activator.tokens import Tokens
from userrealtime_operator.kube.types import NamespacedName

from .clients import Client, ParkedPoll, ParkedStream, ParkedWebSocket
from .heads import Heads
from .session import ParkedSession
from .user import ParkedClient, ParkedUser

STEPS: Final = 20
"""The pings of one interval are sent in so many steps."""


class Parking:
    """The parked connections of one activator.

    Args:
        heads: created with `Parking.wake` as its callback.
        is_parked: returns whether a user has no pod, and its clients are to be parked.
    """

    def __init__(
        self,
        heads: Heads,
        tokens: Tokens,
        is_parked: Callable[[NamespacedName], bool],
        settings: RelaySettings,
        metrics: Metrics,
    ) -> None:
        self._heads = heads
        self._tokens = tokens
        self._is_parked = is_parked
        self._settings = settings
        self._metrics = metrics
        self._turns: tuple[set[ParkedClient], ...] = tuple(set() for _ in range(STEPS))
        """The clients by the step in which they are pinged, which is always the same: once in each interval."""
        self._clients: dict[NamespacedName, set[ParkedClient]] = {}
        """The clients by their resource."""
        self._parked = 0
        self._renewals: set[asyncio.Task[None]] = set()
        metrics.parked.set_function(lambda: sum(map(len, self._turns)))
        metrics.parked_users.set_function(lambda: len(self._heads))

    async def run(self) -> None:
        """Keep the parked connections alive, until cancelled."""
        try:
            while True:
                for clients in self._turns:
                    await asyncio.sleep(self._settings.ping_interval / STEPS)
                    for client in list(clients):
                        client.keep_alive()
        finally:
            for renewal in self._renewals:
                renewal.cancel()
            await asyncio.gather(*self._renewals, return_exceptions=True)

    def unpark(self, resource: NamespacedName) -> None:
        """Connect the clients of a resource to the pod: its user is not parked any more."""
        for client in list(self._clients.get(resource, ())):
            client.wake("woken")

    @staticmethod
    def wake(user: ParkedUser) -> None:
        """Connect the clients of a user to the pod: the log has moved."""
        for client in list(user.clients):
            client.wake("events")

    async def park(self, connection: ClientConnection, admitted: Admitted) -> Admitted:
        """Park a connection for as long as it needs no pod. Return the request for the pod.

        Raises:
            Rejected: the connection has to be closed, or has its response.
            EOFError: the client has closed the connection.
        """
        request, route = admitted
        if request.method != b"GET" or not self._is_parked(route.user):
            return admitted
        opening = request.opening(query_token=self._settings.allow_query_token)
        resume = opening.resume
        if resume is None or resume.cursor is None:
            return admitted
        # Without an epoch, only a client whose user has no log yet has the position of the head.
        if resume.epoch is not None and not (resume.epoch.isascii() and resume.epoch.isprintable()):
            return admitted  # an administrator has set it, and it does not fit in a header
        with self._entering(route.user_id) as user:
            state = await connection.while_connected(self._heads.locate(user))
            if state is None or (state.head, state.epoch) != (resume.cursor, resume.epoch):
                return admitted
            client = await self._client(connection, admitted, opening, state)
            if client is None:
                return admitted
            reason = await self._keep(client, user, state)
        self._metrics.unparks.labels(reason).inc()
        if reason == "gone":
            raise EOFError
        return client.result(reason)

    def _fetch_keys(self, client: ParkedWebSocket) -> None:
        """Fetch the keys for a new token of a client."""

        async def fetch() -> None:
            await self._tokens.refresh(client.admitted.route)
            client.renew()

        task = asyncio.create_task(fetch())
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)

    async def _keep(self, client: Client, user: ParkedUser, state: LogState) -> str:
        """Keep a client parked; return why it is not any more, as the label of the metric."""
        turn = self._turns[self._parked % STEPS]
        self._parked += 1
        try:
            await client.begin()
            user.clients.add(client)
            turn.add(client)
            self._clients.setdefault(client.resource, set()).add(client)
            self._metrics.parks.inc()
            # Either may have changed while the last bytes of the client were awaited.
            if user.position != (state.head, state.epoch):
                client.wake("events")
            elif not self._is_parked(client.resource):
                client.wake("woken")
            return await client.done
        finally:
            user.clients.discard(client)
            turn.discard(client)
            others = self._clients.get(client.resource, set())
            others.discard(client)
            if not others:
                self._clients.pop(client.resource, None)
            client.end()

    @contextlib.contextmanager
    def _entering(self, user_id: str) -> Iterator[ParkedUser]:
        """Report a client of a user as present while the block runs."""
        user = self._heads.enter(user_id)
        user.count += 1
        self._heads.changed(user)
        try:
            yield user
        finally:
            user.count -= 1
            self._heads.changed(user)

    async def _client(
        self, connection: ClientConnection, admitted: Admitted, opening: ConnectRequest, state: LogState
    ) -> Client | None:
        """Return the client of a connection; None if the pod has to respond to it."""
        request, route = admitted
        settings, now = self._settings, asyncio.get_running_loop().time()

        def verify(token: str) -> float:
            return self._tokens.verify(route, token)

        if request.is_websocket:
            await connection.accept_websocket()
            parked = ParkedSession(
                opening,
                state,
                user_id=route.user_id,
                verify=verify,
                auth_timeout=settings.auth_timeout,
                now=now,
                messages_per_second=settings.max_messages_per_second,
            )
            return ParkedWebSocket(connection, admitted, parked, self._fetch_keys)
        session = Session(opening, user_id=route.user_id, verify=verify, auth_timeout=settings.auth_timeout, now=now)
        if session.question is not PendingLookup.POSITION:
            return None
        session.locate(state)
        token = opening.token or ""
        if request.path.endswith("/sse"):
            return ParkedStream(connection, admitted, session, token, state)
        timeout_s = parse_timeout(request.parameters.get("timeout", ""))
        return None if timeout_s is None else ParkedPoll(connection, admitted, session, token, state, timeout_s)
