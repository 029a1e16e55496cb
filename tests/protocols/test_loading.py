"""The protocols of other systems exist, and are imported, only if they are enabled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from testing.database import Database
from testing.patience import PATIENCE_S
from testing.relay.harness import NEVER, USER, client, running
from testing.relay.http_client import request
from userrealtime_core.protocols.actioncable import EXTENDED, PLAIN
from userrealtime_core.relay_settings import PROTOCOLS
from userrealtime_relay.protocols import MODULES

# No program listens there.
NO_DATABASE: Final = "postgresql://nobody@127.0.0.1:1/none"
CORE: Final = "userrealtime_core.protocols"
RELAY: Final = "userrealtime_relay.protocols"
CHECK: Final = f"""
import json, os, sys
import userrealtime_relay.server as server
from userrealtime_relay.config import Config
server.Relay(Config.from_environment(os.environ))
print(json.dumps(sorted(name for name in sys.modules if name.startswith({(CORE, RELAY)!r}))))
"""
MEASURE: Final = """
import gc, os, tracemalloc
import userrealtime_relay.server as server, userrealtime_relay.transports.application
from userrealtime_relay.config import Config
config = Config.from_environment(os.environ)
tracemalloc.start()
relay = server.Relay(config)
gc.collect()
print(sum(each.size for each in tracemalloc.take_snapshot().statistics("filename")))
"""
MOST_BYTES: Final = 1 << 20
IMPORTED: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "": ((), ()),
    "actioncable": (("", ".actioncable", ".cutting", ".dialect"), ("", ".actioncable", ".socket")),
    "durable-streams": ((), ("", ".durable_streams")),
    "pusher": (("", ".cutting", ".dialect", ".pusher"), ("", ".pusher", ".socket")),
    "socketio": (
        ("", ".cutting", ".dialect", ".engineio", ".socketio", ".socketio_packets"),
        ("", ".engineio", ".socket", ".socketio"),
    ),
    "supabase": (("", ".cutting", ".dialect", ".phoenix", ".supabase"), ("", ".socket", ".supabase")),
}
"""The modules of each protocol, in the core and in the relay."""


def test_each_protocol_has_a_module_and_a_list_of_imports() -> None:
    assert tuple(MODULES) == PROTOCOLS
    assert set(IMPORTED) == {"", *PROTOCOLS}


@pytest.mark.parametrize("protocol", IMPORTED)
def test_a_protocol_is_imported_only_if_it_is_enabled(protocol: str) -> None:
    variables = {"USER_ID": USER, "DATABASE_URL": NO_DATABASE, "TOKEN_KEY": "x" * 40, "PROTOCOLS": protocol}
    command = (sys.executable, "-c", CHECK)
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=PATIENCE_S)
    core, relay = IMPORTED[protocol]
    assert json.loads(done.stdout) == [f"{CORE}{module}" for module in core] + [f"{RELAY}{module}" for module in relay]


def test_all_protocols_together_take_little_memory() -> None:
    """Besides the HTTP server, which a relay without them imports with its first HTTP request."""

    def allocated(protocols: str) -> int:
        # As in a pod: without docstrings.
        variables = {"USER_ID": USER, "DATABASE_URL": NO_DATABASE, "TOKEN_KEY": "x" * 40, "PROTOCOLS": protocols}
        environment = {**os.environ, **variables, "PYTHONOPTIMIZE": "2"}
        command = (sys.executable, "-c", MEASURE)
        done = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=PATIENCE_S)
        return int(done.stdout)

    allocated(",".join(PROTOCOLS))  # compiles the modules, if this has not been done
    assert allocated(",".join(PROTOCOLS)) - allocated("") < MOST_BYTES


@pytest.mark.parametrize("enabled", ["", *PROTOCOLS])
async def test_a_protocol_is_there_only_if_it_is_enabled(migrated: Database, enabled: str) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER, PROTOCOLS=enabled) as relay:
        for path in ("/streams/log", "/streams/other"):
            answer = await request(relay, path)
            assert (answer.json == {"error": "not found"}) == (enabled != "durable-streams")
        for name in (PLAIN, EXTENDED):
            connecting = client(relay, path="/cable", subprotocols=[Subprotocol(name)])
            if enabled == "actioncable":
                async with connecting as alice:
                    assert alice.subprotocol == name
            else:
                with pytest.raises(InvalidStatus, match="404"):
                    async with connecting:
                        pass
        for path in ("/pusher/auth", "/pusher/user-auth"):
            answer = await request(relay, path)
            assert (answer.json == {"error": "not found"}) == (enabled != "pusher")
        for path in ("/socket.io/", "/socket.io"):
            answer = await request(relay, f"{path}?EIO=4&transport=polling", None)
            assert (answer.body == b'{"error":"not found"}') == (enabled != "socketio")
            connecting = client(relay, None, path=path, EIO="4", transport="websocket")
            if enabled == "socketio":
                async with connecting as alice:
                    assert (await alice.recv())[:1] == "0"
            else:
                with pytest.raises(InvalidStatus, match="404"):
                    async with connecting:
                        pass
        answer = await request(relay, "/realtime/v1/api/broadcast")
        assert (answer.json == {"error": "not found"}) == (enabled != "supabase")
        connecting = client(relay, path="/realtime/v1/websocket")
        if enabled == "supabase":
            async with connecting as alice:
                await alice.send('{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}')
                assert "phx_reply" in await alice.recv()
        else:
            with pytest.raises(InvalidStatus, match="404"):
                async with connecting:
                    pass
        connecting = client(relay, path="/app/urt")
        if enabled == "pusher":
            async with connecting as alice:
                assert "connection_established" in await alice.recv()
        else:
            with pytest.raises(InvalidStatus, match="404"):
                async with connecting:
                    pass
