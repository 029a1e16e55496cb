"""What the relay expects of its libraries beyond their documented interfaces: one test per library.

A version that breaks an expectation fails here, with a message that describes what to change.
"""

from __future__ import annotations

import inspect

import h11
import uvicorn
from nats.aio.client import Client as NatsClient
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, SEND_EOF
from websockets.server import ServerProtocol

from userrealtime_relay.notify import nats
from userrealtime_relay.transports import front, websocket_connection

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OTAxMjM0NQ==\r\nCookie: %b\r\n\r\n"
)


def test_websockets() -> None:
    protocol = ServerProtocol(max_size=100)
    protocol.receive_data(HANDSHAKE % (b"x" * front.MAX_REQUEST_HEAD))
    events = protocol.events_received()
    assert events, "websockets rejects a header line of 16 KiB: http11.MAX_LINE_LENGTH has no effect any more"
    protocol.send_response(protocol.accept(events[0]))  # type: ignore[arg-type]
    assert protocol.state is OPEN, "websockets: the state after the response 101 is not OPEN"
    assert protocol.data_to_send()[0].startswith(b"HTTP/1.1 101 ")
    protocol.receive_data(Frame(Opcode.PING, b"a").serialize(mask=True))
    assert protocol.data_to_send() == [b"\x8a\x01a"], "websockets: a pong is not sent in the turn of its ping"
    protocol.receive_data(Frame(Opcode.TEXT, b"hello").serialize(mask=True))
    [_, text] = protocol.events_received()
    assert isinstance(text, Frame)
    assert bytes(text.data) == b"hello", "websockets: a frame's data is not the unmasked payload"
    protocol.send_close(1000)
    protocol.receive_data(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))
    assert protocol.data_to_send()[-1] == SEND_EOF, "websockets: the end of the data is not signalled by SEND_EOF"
    assert Frame(Opcode.PING, b"").serialize(mask=False) == websocket_connection.PING


async def test_uvicorn() -> None:
    overridden = (
        *("_get_upgrade", "handle_websocket_upgrade", "send_400_response", "on_response_complete", "handle_events"),
        *("connection_made", "connection_lost", "data_received", "resume_writing"),
    )
    missing = [name for name in overridden if not callable(getattr(H11Protocol, name, None))]
    assert not missing, f"uvicorn: H11Protocol has no {missing}, which http.Connection overrides or calls"
    parameters = list(inspect.signature(H11Protocol.__init__).parameters)
    assert parameters[1:4] == ["config", "server_state", "app_state"], "uvicorn: other arguments of H11Protocol"
    state = ServerState()
    protocol = H11Protocol(uvicorn.Config(lambda: None, ws="none", log_config=None), state, {})
    used = ("conn", "connections", "cycle", "flow", "headers", "app_state", "scope", "transport")
    missing = [name for name in used if name not in vars(protocol)]
    assert not missing, f"uvicorn: H11Protocol has no attribute {missing}, which http.Connection uses"
    assert protocol.connections is state.connections, "uvicorn: open connections are not in ServerState.connections"
    assert isinstance(protocol.conn, h11.Connection), "uvicorn: conn is not h11's Connection"


def test_h11() -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok")
    assert isinstance(connection.next_event(), h11.Request)
    assert connection.trailing_data[0] == b"ok", "h11: data after the head is not in trailing_data"
    assert isinstance(connection.next_event(), h11.Data), "h11: a body is not parsed on demand"


async def test_nats() -> None:
    assert inspect.iscoroutinefunction(getattr(NatsClient, "_process_info", None)), (
        "nats-py: Client._process_info, in which the relay checks TLS before the password is sent, is gone"
    )
    parameters = list(inspect.signature(NatsClient._process_info).parameters)
    assert parameters == ["self", "info", "initial_connection"], "nats-py: other arguments of Client._process_info"
    assert "_current_server" in vars(NatsClient()), "nats-py: Client._current_server is gone"
    assert nats._Client._process_info is not NatsClient._process_info
