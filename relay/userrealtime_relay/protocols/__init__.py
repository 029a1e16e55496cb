"""The protocols of other systems, for their unmodified clients (docs/protocols.md).

One module per protocol, which is imported only if PROTOCOLS names it. A module has one or more of these:

- `DIALECTS`, the classes of its WebSockets by path. They are pure: `socket` does the I/O for all of them. A path that
  ends with `/*` has one variable segment.
- `routes(clients)`, which returns its routes for HTTP requests, under all of `clients.config.paths(...)`.
- `endpoints(clients)`, which returns both, where requests and WebSockets share a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

from starlette.routing import BaseRoute

from userrealtime_core.environment import ConfigError
from userrealtime_relay.delivery.clients import Clients
from userrealtime_relay.transports.websocket import WebSocketEndpoint

MODULES: Final[Mapping[str, str]] = {
    "actioncable": "actioncable",
    "durable-streams": "durable_streams",
    "pusher": "pusher",
    "socketio": "socketio",
    "supabase": "supabase",
}
"""The module of each protocol."""


def load(clients: Clients) -> tuple[Mapping[str, WebSocketEndpoint], Sequence[BaseRoute]]:
    """Return the WebSocket endpoints, by path, and the HTTP routes of the enabled protocols.

    Raises:
        ConfigError: a protocol is missing in this version.
    """
    endpoints: dict[str, WebSocketEndpoint] = {}
    routes: list[BaseRoute] = []
    for name in clients.config.protocols:
        if name not in MODULES:
            raise ConfigError(f"PROTOCOLS: {name} is not part of this version; remove it")
        module = import_module(f"{__name__}.{MODULES[name]}")
        for path, dialect in getattr(module, "DIALECTS", {}).items():
            from .socket import SocketEndpoint  # late: Durable Streams do without it

            endpoint = SocketEndpoint(clients, dialect)
            endpoints |= dict.fromkeys(clients.config.paths(path), endpoint)
        if hasattr(module, "routes"):
            routes += module.routes(clients)
        if hasattr(module, "endpoints"):
            more_endpoints, more_routes = module.endpoints(clients)
            endpoints |= more_endpoints
            routes += more_routes
    return endpoints, routes
