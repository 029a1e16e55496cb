"""One description per protocol, which the load client uses with every server of that protocol.

The events are those of the stream `log`: the whole log of a relay, and a channel with this name at other servers.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import Final

from .client import Dialect

KEY: Final = "a key for a benchmark, long enough for HS256"
"""Signs tokens, and is the secret of servers that have one."""
APP: Final = "bench"
"""The id and the key of an application of Pusher."""
STREAM: Final = "log"
_PRIVATE_CHANNEL: Final = f"private-{STREAM}"
_SOCKET_ID: Final = re.compile(rb'socket_id\\*": *\\*"([0-9.]+)')


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _subscribe_pusher(greeting: bytes) -> str | None:
    """Return the subscription to a private channel, which signs the identity of the connection."""
    found = _SOCKET_ID.search(greeting)
    if found is None:
        return None
    signed = f"{found[1].decode()}:{_PRIVATE_CHANNEL}"
    signature = hmac.new(KEY.encode(), signed.encode(), hashlib.sha256).hexdigest()
    data = {"channel": _PRIVATE_CHANNEL, "auth": f"{APP}:{signature}"}
    return _json({"event": "pusher:subscribe", "data": data})


USERREALTIME: Final = Dialect("/ws", "?last_event_id={}", ready=b'"connected"')
WS: Final = Dialect("/", "?since={}", ready=b'"connected"')
CENTRIFUGO: Final = Dialect(
    "/connection/websocket",
    hello=('{"id":1,"connect":{}}', _json({"id": 2, "subscribe": {"channel": STREAM}})),
    ready=b'"subscribe"',
    ping=b"\x81\x02{}",
    pong="{}",
)
SOCKET_IO: Final = Dialect(
    "/socket.io/?EIO=4&transport=websocket",
    "&since={}",
    hello=("40",),
    ready=b"40{",
    ping=b"\x81\x012",
    pong="3",
)
ACTION_CABLE: Final = Dialect(
    "/cable",
    headers={"Sec-WebSocket-Protocol": "actioncable-v1-json", "Origin": "http://127.0.0.1"},
    hello=(_json({"command": "subscribe", "identifier": _json({"channel": "$pubsub", "stream_name": STREAM})}),),
    ready=b"confirm_subscription",
)
PUSHER: Final = Dialect(
    f"/app/{APP}?protocol=7&client=bench&version=1.0.0",
    response=_subscribe_pusher,
    ready=b"subscription_succeeded",
    ping=b"pusher:ping",
    pong=_json({"event": "pusher:pong", "data": {}}),
)
SUPABASE: Final = Dialect(
    "/realtime/v1/websocket?apikey=bench&vsn=2.0.0",
    hello=(_json(["1", "1", f"realtime:{STREAM}", "phx_join", {"config": {}}]),),
    ready=b'"status":"ok"',
)
DURABLE_STREAMS: Final = Dialect(f"/streams/{STREAM}?offset=now&live=sse", upgrade=False, ready=b'"upToDate":true')


@dataclass(frozen=True)
class Protocol:
    """A protocol of another system, which the relay serves in addition to its own."""

    name: str
    """Its name in PROTOCOLS of the relay."""
    title: str
    dialect: Dialect
    server: str
    """The peer that is the protocol's own server."""


PROTOCOLS: Final = (
    Protocol("socketio", "Socket.IO", SOCKET_IO, "Socket.IO"),
    Protocol("actioncable", "Action Cable", ACTION_CABLE, "AnyCable"),
    Protocol("pusher", "Pusher", PUSHER, "Sockudo"),
    Protocol("durable-streams", "Durable Streams", DURABLE_STREAMS, "durable-streams"),
    Protocol("supabase", "Supabase", SUPABASE, "Supabase Realtime"),
)
