"""The activator's public port: one connection, one request, one pod.

    read the head -> find the user -> check the origin and the token -> read the body -> wake -> forward

No user is woken before the token was accepted, by the code that the relay uses. Each stage has a time limit, each
connection one bounded buffer per direction, and the number of connections is limited.
Unauthenticated connections have a separate limit: the oldest of them is closed for a new one. They never take the place
of a client with a valid token.

While the proxy drains, clients that wait for a pod and forwarded WebSockets are asked to reconnect. Any other response
that has started is cut off, and its client continues after the last complete event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterator
from typing import Any, Final, Protocol

from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.wakes import Address, WakeFailed, Wakes

from .admission import Admission, Admitted
from .connection import CHUNK_BYTES, CLOSE_TIMEOUT_S, ClientConnection, ClientReader
from .dialogue import Dialogue
from .request import Request
from .responses import Headers, Rejected, evicted, unavailable
from .tunnel import PodConnection, PodUnavailable, Tunnel, is_accepted, read_greeting, read_stream_greeting

ATTEMPTS: Final = 3
"""How often a request is sent to a pod that closes the connection before it responds."""

_logger = logging.getLogger(__name__)


class Parking(Protocol):
    """Keeps connections without a pod."""

    async def park(self, connection: ClientConnection, admitted: Admitted) -> Admitted:
        """Keep a connection for as long as it needs no pod. Return the request for the pod.

        Raises:
            Rejected: the connection has to be closed.
            EOFError: the client has closed the connection.
        """


class ActivatorProxy:
    """Accepts all connections of the activator, and forwards the admitted ones.

    Args:
        idle_s: how long both directions of a forwarded connection may be silent.
        parking: keeps connections while they need no pod. None: all of them are forwarded.
    """

    def __init__(
        self, admission: Admission, wakes: Wakes, metrics: Metrics, idle_s: float, parking: Parking | None = None
    ) -> None:
        self._admission = admission
        self._wakes = wakes
        self._metrics = metrics
        self._idle_s = idle_s
        self._parking = parking
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server
        metrics.connections.set_function(lambda: len(self._tasks))
        metrics.unauthenticated.set_function(lambda: admission.unauthenticated)

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._tasks)

    @property
    def port(self) -> int:
        """The port that `listen` has opened."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def listen(self, host: str, port: int) -> None:
        """Start to accept connections.

        Raises:
            OSError: the port is not available.
        """

        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(ClientReader(limit=CHUNK_BYTES), self._accept)

        self._server = await asyncio.get_running_loop().create_server(protocol, host, port, backlog=512)

    async def drain(self, over_s: float) -> None:
        """Stop accepting connections, and close the existing ones spread over a number of seconds."""
        self._server.close()
        tasks = list(self._tasks)
        random.shuffle(tasks)
        for task in tasks:
            task.cancel()
            await asyncio.sleep(over_s / len(tasks))
        for task in self._tasks.difference(tasks):
            task.cancel()  # accepted just before the port was closed
        await self._wakes.close()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=2 * CLOSE_TIMEOUT_S + 1)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (asyncio runs this function in a task)
        self._tasks.add(task)
        connection = ClientConnection(reader, writer)
        try:
            try:
                await self._serve(connection)
            except asyncio.CancelledError:
                task.uncancel()  # asyncio's streams log the cancellation of a connection's task as an error
                self._count("drained")
                await connection.drain()
        except Exception:
            self._count("internal_error")
            _logger.exception("connection failed with an unexpected error")
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, connection: ClientConnection) -> None:
        """Serve a connection, and evict it if it is the oldest unauthenticated one when there are too many."""
        try:
            async with self._admission.evictable(connection):
                await self._respond(connection)
        except TimeoutError:
            rejected = evicted()
            if connection.evict(rejected):
                self._count(rejected.outcome)

    async def _respond(self, connection: ClientConnection) -> None:
        try:
            async with self._admission.admit(connection) as admitted:
                await self._forward(connection, admitted)
        except Rejected as rejected:
            self._count(rejected.outcome)
            await connection.reject(rejected)
        except (OSError, EOFError, TimeoutError):
            self._count("client_gone")
        else:
            self._count("forwarded")

    async def _forward(self, connection: ClientConnection, admitted: Admitted) -> None:
        """Forward a connection to its user's pod, and to another pod if that one goes before it responds."""
        if self._parking is not None and admitted.request.protocol(admitted.route.base_path) is None:
            admitted = await self._parking.park(connection, admitted)
        began = time.monotonic()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._forward_once(connection, admitted, began)
            except (WakeFailed, PodUnavailable) as error:
                if isinstance(error, PodUnavailable) and error.may_retry and attempt < ATTEMPTS:
                    continue
                fields = {"user": str(admitted.route.user), "reason": str(error)}
                _logger.warning("could not forward a connection to its pod", extra={"fields": fields})
                await connection.accept_websocket()
                raise unavailable("The user's pod did not start in time; retry later") from None
            else:
                return

    async def _forward_once(self, connection: ClientConnection, admitted: Admitted, began: float) -> None:
        request, route = admitted
        with contextlib.ExitStack() as stack:
            with _beating(connection):
                address = await connection.while_connected(self._address(connection, admitted))
                pod = await PodConnection.open(*address)
                stack.callback(pod.writer.close)
                response = await connection.while_connected(pod.send_request(request, self._idle_s))
            first = b""
            if request.greeted and not request.is_websocket:
                first = await connection.while_connected(read_stream_greeting(pod, response))
            elif request.greeted and is_accepted(response):
                first = await connection.while_connected(read_greeting(pod))
            fields = {"user": str(route.user), "waited_s": round(time.monotonic() - began, 3)}
            _logger.info("forwarding", extra={"fields": fields})
            await Tunnel(connection, pod, self._metrics, self._idle_s).run(request, response, first)

    async def _address(self, connection: ClientConnection, admitted: Admitted) -> Address:
        """Return the address of the user's pod. Wake the user if the request may."""
        request, route = admitted
        if request.may_wake:
            return await self._wakes.wake_and_wait(route)
        from . import polling  # late: few users have it

        cors = connection.cors_headers
        waiting = [asyncio.ensure_future(self._wakes.wait_for_pod(route))]
        hold_s = 0.0
        if request.identity and request.method == b"GET":
            hold_s = polling.HOLD_S
            if request.is_websocket:
                hold_s = self._admission.request_s
            else:
                waiting.append(asyncio.ensure_future(self._rejection(request, cors)))
        try:
            done, _ = await asyncio.wait(waiting, timeout=hold_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                return task.result()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        if request.is_websocket:
            raise unavailable("The user has no pod yet; retry later")
        raise polling.no_message(cors) if hold_s else polling.unknown_session(cors)

    async def _rejection(self, request: Request, cors: Headers) -> Address:
        """Wait until the token of a session was rejected.

        Raises:
            Rejected: it was.
        """
        from . import polling

        raise polling.last_packets(await self._admission.polls.rejection(request.parameters["sid"]), cors)

    def _count(self, outcome: str) -> None:
        self._metrics.outcomes.labels(outcome).inc()


@contextlib.contextmanager
def _beating(connection: ClientConnection) -> Iterator[None]:
    """Send the heartbeats of another system's protocol while the block runs."""
    dialogue, loop = connection.dialogue, asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def beat(dialogue: Dialogue, beat_s: float) -> None:
        nonlocal timer
        connection.writer.write(dialogue.beat(time.time()))
        timer = loop.call_later(beat_s, beat, dialogue, beat_s)

    if dialogue is not None and dialogue.beat_s is not None:
        beat(dialogue, dialogue.beat_s)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
