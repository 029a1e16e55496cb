"""The tunnel between a client and its user's pod: the request, the pod's response, and then bytes in both directions.

Each direction has one bounded buffer, and stops reading while the other side does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import Final, NamedTuple

from websockets.frames import Opcode

from userrealtime_operator.activator.metrics import Metrics

from .connection import CHUNK_BYTES, CLOSE_TIMEOUT_S, ClientConnection
from .frames import FrameTracker
from .greeting import StreamGreeting
from .request import Request
from .responses import Rejected

HANDSHAKE_TIMEOUT_S: Final = 10


class PodUnavailable(Exception):
    """The pod did not respond.

    Args:
        may_retry: whether the request can be sent again, because it cannot have had an effect.
    """

    def __init__(self, reason: str, *, may_retry: bool) -> None:
        super().__init__(reason)
        self.may_retry = may_retry


class PodConnection(NamedTuple):
    """A connection to a user's pod."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, host: str, port: int) -> PodConnection:
        """Connect to a pod.

        Raises:
            PodUnavailable: the pod did not accept the connection.
        """
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                return cls(*await asyncio.open_connection(host, port, limit=CHUNK_BYTES))
        except (OSError, TimeoutError) as error:
            reason = f"could not connect to the pod: {type(error).__name__}"
            raise PodUnavailable(reason, may_retry=True) from None

    async def send_request(self, request: Request, timeout_s: float) -> bytes:
        """Send a request, and return the first bytes of the response; for a WebSocket, the head of the response.

        Raises:
            PodUnavailable: the pod did not respond.
        """
        may_retry = request.is_repeatable
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S if request.is_websocket else timeout_s):
                # Without extensions, because the activator's handshake and the pod's must agree on the frames.
                self.writer.write(request.serialize(without=[b"sec-websocket-extensions"]))
                await self.writer.drain()
                if request.is_websocket:
                    return await self.reader.readuntil(b"\r\n\r\n")
                response = await self.reader.read(CHUNK_BYTES)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            raise PodUnavailable(f"the pod did not respond: {type(error).__name__}", may_retry=may_retry) from None
        if not response:
            raise PodUnavailable("the pod closed the connection before it responded", may_retry=may_retry)
        return response


def is_accepted(response: bytes) -> bool:
    """Return whether a pod has accepted a handshake."""
    return response.startswith(b"HTTP/1.1 101 ")


async def read_stream_greeting(pod: PodConnection, response: bytes) -> bytes:
    """Read the beginning of a stream of the pod, and return the chunks after its first message.

    Raises:
        PodUnavailable: the pod does not serve the stream, or the connection was lost.
    """
    greeting = StreamGreeting()
    try:
        while (rest := greeting.feed(response)) is None:
            if greeting.accepted is False:
                raise PodUnavailable("the pod does not serve the stream", may_retry=True)
            response = await pod.reader.read(CHUNK_BYTES)
            if not response:
                raise EOFError
    except (OSError, EOFError, ValueError) as error:
        raise PodUnavailable(f"the pod did not greet: {type(error).__name__}", may_retry=True) from None
    return rest


async def read_greeting(pod: PodConnection) -> bytes:
    """Read a WebSocket's first message of the pod, and return the frames before it.

    If the pod closes the connection instead, its close frame is among them.

    Raises:
        PodUnavailable: the connection was lost.
    """
    before = b""
    try:
        while True:
            frame = await pod.reader.readexactly(2)
            size = frame[1] & 0x7F
            if size > 125:
                length = await pod.reader.readexactly(2 if size == 126 else 8)
                frame, size = frame + length, int.from_bytes(length)
            frame += await pod.reader.readexactly(size)
            if frame[0] & 0x0F == Opcode.TEXT:
                return before
            before += frame
            if frame[0] & 0x0F == Opcode.CLOSE:
                return before
    except (OSError, EOFError) as error:
        raise PodUnavailable(f"the pod did not greet: {type(error).__name__}", may_retry=True) from None


class Tunnel:
    """Forwards bytes between a client and a pod.

    Args:
        idle_s: how long both directions may be silent.
    """

    def __init__(self, client: ClientConnection, pod: PodConnection, metrics: Metrics, idle_s: float) -> None:
        self._client = client
        self._pod = pod
        self._idle_s = idle_s
        self._preamble = None if client.dialogue is None else client.dialogue.preamble()
        self._bytes_to_pod = metrics.forwarded.labels("pod")
        self._bytes_to_client = metrics.forwarded.labels("client")

    async def run(self, request: Request, response: bytes, first: bytes = b"") -> None:
        """Forward the beginning of the pod's response, and then all bytes until one side closes its connection.

        Args:
            first: for a client that was greeted, what the pod has sent apart from its greeting.

        Raises:
            Rejected: the pod did not accept a WebSocket that the activator has accepted.
            TimeoutError: both sides were silent for too long.
            OSError: a connection was lost.
        """
        if not request.is_websocket:
            await self._start_response(first if request.greeted else response)
            await self._forward(self._idle_s, from_client=False)
            return
        accepted = is_accepted(response)
        if not self._client.upgraded:
            await self._start_response(response)
        elif not accepted:
            raise Rejected(HTTPStatus.BAD_GATEWAY, "The user's pod does not accept this connection")
        if accepted:
            self._client.pod_frames = FrameTracker()
            self._pod.writer.write(self._client.buffered)
            if first:
                await self._send_to_client(first)
            await self._forward(self._idle_s, from_client=True)
        else:
            # The pod would parse the client's bytes as another request.
            await self._forward(CLOSE_TIMEOUT_S, from_client=False)

    async def _start_response(self, response: bytes) -> None:
        self._bytes_to_client.inc(len(response))
        await self._client.start_response(response)

    async def _forward(self, idle_s: float, *, from_client: bool) -> None:
        """Forward both directions. Unless `from_client`, the bytes of the client are discarded."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(idle_s) as idle:

            async def to_client() -> None:
                while data := await self._pod.reader.read(CHUNK_BYTES):
                    await self._send_to_client(data)
                    idle.reschedule(loop.time() + idle_s)

            async def to_pod() -> None:
                while data := await self._client.reader.read(CHUNK_BYTES):
                    if from_client:
                        self._bytes_to_pod.inc(len(data))
                        self._pod.writer.write(data)
                        await self._pod.writer.drain()
                        idle.reschedule(loop.time() + idle_s)

            tasks = [asyncio.create_task(to_client()), asyncio.create_task(to_pod())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            except asyncio.CancelledError:
                await _cancel(tasks)
                await self._complete_frame()
                raise
            finally:
                await _cancel(tasks)

    async def _send_to_client(self, data: bytes) -> None:
        if self._preamble is not None:
            data = self._preamble.feed(data)
        if self._client.pod_frames is not None:
            self._client.pod_frames.feed(data)
        self._bytes_to_client.inc(len(data))
        await self._client.send(data)

    async def _complete_frame(self) -> None:
        """Forward the rest of the frame that the pod has begun to send."""
        frames = self._client.pod_frames
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while frames is not None and frames.missing:
                    data = await self._pod.reader.read(frames.missing)
                    if not data:
                        return
                    await self._send_to_client(data)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
