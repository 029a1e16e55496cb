"""The transports, over aiohttp. Each function handles one connection or one request, and reports to an `Ear`.

No function raises: its last report is the reason for the end. A function that is cancelled reports nothing more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlencode, urlsplit

import aiohttp

from .decode import Parse, decode_answer, decode_message
from .machine import Code, Message, Open, encode
from .stream import LONGEST_MESSAGE, EventStream

SUBPROTOCOL: Final = "userrealtime.v1"
CLOSE_TIMEOUT_S: Final = 1.0
POST_TIMEOUT_S: Final = 30.0
LONGEST_ERROR: Final = 4096
NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None)
"""The deadlines of the machine limit the time instead."""
TROUBLE: Final = (aiohttp.ClientError, OSError, TimeoutError, ValueError)


class Ear(Protocol):
    """Receives the reports of one connection."""

    def message(self, message: Any) -> None:
        """Receive a message of the relay, a JSON value."""

    def answered(self, answer: Any) -> None:
        """Receive the response to a poll."""

    def heard(self) -> None:
        """Receive the notice that data has arrived."""

    def closed(self, code: int, reason: str) -> None:
        """Receive the end of the connection, or the failure to open it (1006)."""

    def refused(self, status: int, reason: str, retry_after: float | None) -> None:
        """Receive an error status of the response; `retry_after` is in milliseconds."""


def base_of(url: str) -> str:
    """Return a user's URL (`status.url`) without a trailing slash, so that paths can be appended.

    Raises:
        ValueError: it is not the URL of a user.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not the http or https URL of a user, such as status.url of a UserRealtime")
    return url.rstrip("/")


async def websocket(
    session: aiohttp.ClientSession,
    base: str,
    opening: Open,
    outgoing: asyncio.Queue[Message],
    ear: Ear,
    parse: Parse | None,
) -> None:
    """Open a WebSocket, and send the messages of the queue over it until it ends."""
    try:
        async with session.ws_connect(
            f"{base}/ws{_query(last_event_id=opening.cursor, epoch=opening.epoch)}",
            headers=_authorization(opening.token),
            protocols=(SUBPROTOCOL,),
            max_msg_size=LONGEST_MESSAGE,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
        ) as connection:
            sender = asyncio.create_task(_send_all(connection, outgoing))
            try:
                code, reason = await _receive_all(connection, ear, parse)
            finally:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
    except aiohttp.WSServerHandshakeError as error:
        ear.refused(error.status, "", _retry_after(error.headers or {}))
    except TROUBLE as error:
        ear.closed(Code.ABNORMAL, _told(error))
    else:
        ear.closed(code, reason)


async def stream(
    session: aiohttp.ClientSession, base: str, opening: Open, sender: str, ear: Ear, parse: Parse | None
) -> None:
    """Receive a stream of Server-Sent Events until it ends."""
    headers = {**_authorization(opening.token), "Accept": "text/event-stream"}
    url = f"{base}/sse{_query(last_event_id=opening.cursor, epoch=opening.epoch, sender=sender)}"
    try:
        async with session.get(url, headers=headers, timeout=NO_TIMEOUT, allow_redirects=False) as response:
            if response.status != 200:
                ear.refused(response.status, await _error_of(response), _retry_after(response.headers))
                return
            if response.content_type != "text/event-stream":
                raise ValueError(f"an answer of type {response.content_type}")
            parser = EventStream()
            async for piece in response.content.iter_any():
                ear.heard()
                for data in parser.feed(piece):
                    ear.message(decode_message(data, parse))
    except TROUBLE as error:
        ear.closed(Code.ABNORMAL, _told(error))
    else:
        ear.closed(Code.ABNORMAL, "the stream ended")


async def poll(
    session: aiohttp.ClientSession, base: str, opening: Open, sender: str, ear: Ear, parse: Parse | None
) -> None:
    """Send one poll."""
    query = _query(
        cursor=opening.cursor,
        epoch=opening.epoch,
        timeout=opening.wait,
        broadcasts=opening.broadcasts,
        sender=None if opening.broadcasts is None else sender,
    )
    headers = _authorization(opening.token)
    try:
        async with session.get(
            f"{base}/poll{query}", headers=headers, timeout=NO_TIMEOUT, allow_redirects=False
        ) as response:
            if response.status != 200:
                ear.refused(response.status, await _error_of(response), _retry_after(response.headers))
                return
            answer = decode_answer((await response.read()).decode(), parse)
    except TROUBLE as error:
        ear.closed(Code.ABNORMAL, _told(error))
    else:
        ear.answered(answer)


async def post(
    session: aiohttp.ClientSession, url: str, message: Message, token: str
) -> tuple[int, Message, float | None]:
    """Send a message by POST; return the status (0 without a response), the body, and `Retry-After` in milliseconds."""
    headers = {**_authorization(token), "Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=POST_TIMEOUT_S)
    try:
        async with session.post(
            url, data=encode(message), headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            answer = _object(await response.read())
            return response.status, answer, _retry_after(response.headers)
    except TROUBLE:
        return 0, {}, None


async def _send_all(connection: aiohttp.ClientWebSocketResponse, outgoing: asyncio.Queue[Message]) -> None:
    while True:
        await connection.send_str(encode(await outgoing.get()).decode())


async def _receive_all(connection: aiohttp.ClientWebSocketResponse, ear: Ear, parse: Parse | None) -> tuple[int, str]:
    """Receive messages until the connection ends; return the close code and the reason."""
    while True:
        frame = await connection.receive()
        if frame.type is aiohttp.WSMsgType.TEXT:
            ear.message(decode_message(frame.data, parse))
        elif frame.type is aiohttp.WSMsgType.CLOSE:
            return int(frame.data or Code.ABNORMAL), str(frame.extra or "")
        elif frame.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
            return Code.ABNORMAL, _told(frame.data) if isinstance(frame.data, BaseException) else ""


def _authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _query(**parameters: object) -> str:
    given = {name: value for name, value in parameters.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After", "")
    return 1000.0 * int(value) if value.isascii() and value.isdigit() and len(value) < 6 else None


def _object(body: bytes) -> Message:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):  # for example the page of a proxy
        return {}
    return answer if isinstance(answer, dict) else {}


async def _error_of(response: aiohttp.ClientResponse) -> str:
    """Return the relay's error message, empty if the response is not from a relay."""
    return str(_object(await response.content.read(LONGEST_ERROR)).get("error", ""))


def _told(error: object) -> str:
    return str(error) or type(error).__name__
