"""A relay on its own, without Kubernetes: `make relay`.

Starts a PostgreSQL and a relay on loopback, prints what to paste into another terminal to receive and to publish, and
publishes an event every two seconds, showing what a client receives. Ctrl-C ends all of it. With `--once`, or CI=true
in the environment, it ends after the first events, with 0 if they arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import jwt
from websockets.asyncio.client import ClientConnection, connect

from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from userrealtime_operator.postgres.migrate import migrate

USER = "alice"
START_TIMEOUT_S = PATIENCE_S
STOP_TIMEOUT_S = 35
PUBLISH_INTERVAL_S = 2
EVENTS_ONCE = 3
TOKEN_LIFE_S = 12 * 3600


class RelayError(RuntimeError):
    """The relay gave an unexpected result; the message has the result."""


async def _first_line_with(output: asyncio.StreamReader, message: str) -> dict[str, object]:
    async for line in output:
        fields: dict[str, object] = json.loads(line)
        if fields["message"] == message:
            return fields
    raise RelayError("the relay ended; what it says is above")


async def _show(output: asyncio.StreamReader) -> None:
    async for line in output:
        print(f"  relay says {line.decode().rstrip()}", flush=True)


@asynccontextmanager
async def running_relay(environment: dict[str, str]) -> AsyncIterator[int]:
    """Run a relay as a separate process on free ports; yield the port of its WebSockets."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "userrealtime_relay",
        env={**os.environ, "HOST": "127.0.0.1", "WS_PORT": "0", "HEALTH_PORT": "0", **environment},
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process, which then stops the relay gracefully
    )
    assert process.stdout is not None
    show = None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            listening = await _first_line_with(process.stdout, "listening")
            await _first_line_with(process.stdout, "connected to Postgres")
        show = asyncio.create_task(_show(process.stdout))
        yield int(str(listening["ws_port"]))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if show is not None:
            await show


async def _publish(connection: asyncpg.Connection, number: int) -> None:
    data = json.dumps({"number": number, "note": "from make relay"})
    await connection.execute("select userrealtime.publish($1, 'demo.tick', $2::text::jsonb)", USER, data)


def _instructions(ws_port: int, database_url: str, token: str) -> str:
    python = shlex.quote(sys.executable)
    receive = (
        "import os; from websockets.sync.client import connect; "
        f"[print(m, flush=True) for m in connect('ws://127.0.0.1:{ws_port}/ws', "
        "additional_headers={'Authorization': 'Bearer ' + os.environ['TOKEN']})]"
    )
    publish = f"select userrealtime.publish('{USER}', 'hello', '{{\\\"from\\\": \\\"another terminal\\\"}}')"
    return f"""
A relay for the user {USER!r}, with a new PostgreSQL. In another terminal:

  receive {USER}'s events:

TOKEN={token} {python} -c "{receive}"

  publish one, with psql or with Python:

psql {database_url} -c "{publish}"

{python} -c "import asyncio, asyncpg
async def main(): await (await asyncpg.connect('{database_url}')).execute(\\"\\"\\"{publish}\\"\\"\\")
asyncio.run(main())"

Here, an event every {PUBLISH_INTERVAL_S} s, and what a client receives (Ctrl-C ends all of it):
"""


async def run(*, once: bool) -> None:
    """Run until cancelled or, with `once`, until the first events have arrived.

    Raises:
        RelayError, TimeoutError: they did not.
    """
    with LocalPostgres() as server:
        await migrate(server.url())
        key = secrets.token_urlsafe(32)
        token = jwt.encode({"sub": USER, "exp": int(time.time()) + TOKEN_LIFE_S}, key, algorithm="HS256")
        environment = {"USER_ID": USER, "DATABASE_URL": server.url(), "TOKEN_KEY": key}
        async with running_relay(environment) as ws_port:
            print(_instructions(ws_port, server.url(), token), flush=True)
            connection = await asyncpg.connect(server.url())
            try:
                async with connect(
                    f"ws://127.0.0.1:{ws_port}/ws", additional_headers={"Authorization": f"Bearer {token}"}
                ) as client:
                    await _converse(connection, client, once=once)
            finally:
                await connection.close()


async def _converse(connection: asyncpg.Connection, client: ClientConnection, *, once: bool) -> None:
    async def publish() -> None:
        number = 0
        while True:
            number += 1
            await _publish(connection, number)
            await asyncio.sleep(PUBLISH_INTERVAL_S)

    publishing = asyncio.create_task(publish())
    try:
        received = 0
        while not once or received < EVENTS_ONCE:
            async with asyncio.timeout(START_TIMEOUT_S):
                message = await client.recv()
            print(f"  {USER} gets {message!s}", flush=True)
            received += json.loads(message)["type"] == "event"
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)


async def _main(*, once: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    # SIGINT as well: a process that is started in the background, as by a CI, ignores it by default.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await run(once=once)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--once"]):
        print(f"usage: python -m testing.local.relay [--once]\n\n{__doc__}", file=sys.stderr)
        return 2
    once = arguments == ["--once"] or os.environ.get("CI") == "true"
    try:
        asyncio.run(_main(once=once))
    except asyncio.CancelledError:
        print("\nended", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
