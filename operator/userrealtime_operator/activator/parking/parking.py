"""Decides which connections are parked, and for how long. The connections stay in the tasks that serve them.

A connection is parked if its user is parked and its client has all events: it gives a cursor and an epoch, which are
the head and the epoch of the log. Any other connection is forwarded to a pod, for which the user is woken.

A parked connection ends in one of three ways: the client leaves, the token expires, or the client needs the pod. In the
last case, the request to the pod has the position and the newest token of the client.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Final

from userrealtime_core.relay_settings import RelaySettings
from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest
from userrealtime_core.wire.position import LogState
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.proxy.admission import Admitted
from userrealtime_operator.activator.proxy.connection import ClientConnection
from userrealtime_operator.activator.proxy.responses import Rejected
from userrealtime_operator.activator.routes import Route
from userrealtime_operator.activator.tokens import Tokens
from userrealtime_operator.kube.types import NamespacedName

from .heads import Heads
from .session import ParkedSession
from .user import ParkedClient, ParkedUser

STEPS: Final = 20
"""The pings of one interval are sent in so many steps."""
MAX_UNSENT: Final = 64 << 10
"""Bytes that may wait for a parked client that does not read."""


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
        self._clients: dict[ParkedClient, None] = {}
        self._renewals: set[asyncio.Task[None]] = set()
        metrics.parked.set_function(lambda: len(self._clients))
        metrics.parked_users.set_function(lambda: len(self._heads))

    async def run(self) -> None:
        """Keep the parked connections alive, until cancelled."""
        while True:
            for step in range(STEPS):
                await asyncio.sleep(self._settings.ping_interval / STEPS)
                for client in list(self._clients)[step::STEPS]:
                    client.keep_alive()

    def unpark(self, resource: NamespacedName) -> None:
        """Connect the clients of a resource to the pod: its user is not parked any more."""
        for user in self._heads:
            for client in [each for each in user.clients if each.resource == resource]:
                client.wake("woken")

    @staticmethod
    def wake(user: ParkedUser) -> None:
        """Connect the clients of a user to the pod: the log has moved."""
        for client in list(user.clients):
            client.wake("events")

    async def park(self, connection: ClientConnection, admitted: Admitted) -> Admitted:
        """Park a connection for as long as it needs no pod. Return the request for the pod.

        Raises:
            Rejected: the connection has to be closed.
            EOFError: the client has closed the connection.
        """
        opening = admitted.request.opening(query_token=self._settings.allow_query_token)
        resume, resource = opening.resume, admitted.route.user
        if not (admitted.request.is_websocket and self._is_parked(resource)):
            return admitted
        if resume is None or resume.cursor is None or resume.epoch is None:
            return admitted
        with self._entering(admitted.route.user_id) as user:
            state = await connection.while_connected(self._heads.locate(user))
            if state is None or (state.head, state.epoch) != (resume.cursor, resume.epoch):
                return admitted
            await connection.accept_websocket()
            client = ParkedWebSocket(connection, self._session(opening, state, admitted.route), admitted.route, self)
            reason = await self._keep(client, user, state)
        self._metrics.unparks.labels(reason).inc()
        return client.result(admitted, reason)

    def renew(self, client: ParkedWebSocket) -> None:
        """Fetch the keys for a new token of a client."""

        async def fetch() -> None:
            await self._tokens.refresh(client.route)
            client.renew()

        task = asyncio.create_task(fetch())
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)

    async def _keep(self, client: ParkedWebSocket, user: ParkedUser, state: LogState) -> str:
        """Keep a client parked; return why it is not any more, as the label of the metric."""
        await client.begin()
        user.clients.add(client)
        self._clients[client] = None
        self._metrics.parks.inc()
        # Either may have changed while the last bytes of the client were awaited.
        if not self._is_parked(client.resource) or user.state != state:
            client.wake("woken")
        try:
            return await client.done
        finally:
            user.clients.discard(client)
            del self._clients[client]
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

    def _session(self, opening: ConnectRequest, state: LogState, route: Route) -> ParkedSession:
        return ParkedSession(
            opening,
            state,
            user_id=route.user_id,
            verify=lambda token: self._tokens.verify(route, token),
            auth_timeout=self._settings.auth_timeout,
            now=asyncio.get_running_loop().time(),
            messages_per_second=self._settings.max_messages_per_second,
        )


class ParkedWebSocket:
    """A parked WebSocket: passes bytes between its socket and its session."""

    __slots__ = ("_connection", "_loop", "_parking", "_renewing", "_timer", "done", "route", "session")

    def __init__(self, connection: ClientConnection, session: ParkedSession, route: Route, parking: Parking) -> None:
        self.session = session
        self.route = route
        self._connection = connection
        self._parking = parking
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[str] = self._loop.create_future()
        """The reason why the connection is not parked any more."""
        self._timer: asyncio.TimerHandle | None = None
        self._renewing = False

    @property
    def resource(self) -> NamespacedName:
        return self.route.user

    async def begin(self) -> None:
        """Send the greeting, and process what the client sends from here on."""
        await self._connection.divert(self.receive)
        self._advance()

    def end(self) -> None:
        """Keep what the client has sent for the pod, and process nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._connection.undivert(self.session.rest)

    def result(self, admitted: Admitted, reason: str) -> Admitted:
        """Return the request for the pod.

        Raises:
            Rejected: the connection has to be closed.
            EOFError: the client has closed the connection.
        """
        session = self.session
        if reason == "gone":
            raise EOFError
        if session.closing is not None:
            code, text = session.closing
            outcome = "expired" if code == CloseCode.TOKEN_EXPIRED else "unauthorized"
            raise Rejected(HTTPStatus.UNAUTHORIZED, text, code, outcome)
        head, _, epoch = session.position
        return admitted._replace(request=admitted.request.resumed(session.token, head, epoch or ""), greeted=True)

    def wake(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_result(reason)

    def keep_alive(self) -> None:
        self.session.ping()
        self._advance()

    def receive(self, data: bytes) -> None:
        """Process bytes of the client, b"" at the end of the connection."""
        if not data:
            self.wake("gone")
            return
        self.session.receive(data, self._loop.time())
        self._advance()

    def renew(self) -> None:
        """Note that the keys for a new token were fetched."""
        self._renewing = False
        self.session.renew(self._loop.time())
        self._advance()

    def _advance(self) -> None:
        """Do what the session asks for."""
        session, writer = self.session, self._connection.writer
        if output := session.take():
            writer.write(output)
            if writer.transport.get_write_buffer_size() > MAX_UNSENT:
                writer.transport.abort()
        if session.ended:
            self.wake("gone")
        elif session.closing is not None:
            self.wake("closed")
        elif session.needs_pod:
            self.wake("message")
        elif session.renewing and not self._renewing:
            self._renewing = True
            self._parking.renew(self)
        elif self._timer is None or self._timer.when() != session.deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(session.deadline, self._tick)

    def _tick(self) -> None:
        self.session.tick(self._loop.time())
        self._advance()
