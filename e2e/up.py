"""`make up`: everything, from nothing, and then a first user's events as they arrive.

Ends with a live view: rows are inserted into an application's table, and shown as they arrive from the user's own pod,
through the ingress. On a terminal that goes on until Ctrl-C (the cluster stays); elsewhere, or with `CI=true`, it
ends after the first events.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import asyncpg

from testing import demo
from testing.client import ResumingClient
from testing.cluster import ClusterError, choose
from testing.cluster.progress import heed_sigterm
from testing.system import USERS_NAMESPACE, System, install

USER = "alice"
ENOUGH_EVENTS = 3
INSERT_INTERVAL_S = 2.0
FIRST_EVENTS_TIMEOUT_S = 60.0
OPEN_BROWSER_TIMEOUT_S = 10.0

# A table of an application, with the ready-made trigger.
TABLE = """
create table if not exists public.orders (
    id bigint generated always as identity primary key,
    customer text not null,
    total numeric(10, 2) not null
);
create or replace trigger publish_orders after insert or update or delete on public.orders
    for each row execute function userrealtime.capture('customer', 'order');
"""


def show(system: System, page: str) -> None:
    """Print the next commands for the user. `page` is the demo's URL."""
    auth = json.dumps({"type": "auth", "token": system.token(USER)})
    python = os.path.relpath(sys.executable)
    psql = "kubectl -n postgres exec postgres-0 -- psql"
    print(
        f"""
{system.kubectl("get", "urt", "-o", "wide").rstrip()}

Connect as {USER}, in another terminal (paste both lines; the second is the client's first message):

  {python} -m websockets {system.websocket_url(USER)}
  {auth}

Make kubectl mean this cluster:

  eval "$({python} -m testing.cluster env)"

Publish to {USER}, from the database:

  {psql} -c "select userrealtime.publish('{USER}', 'greeting', '{{\\"text\\": \\"hello\\"}}')"
  {psql} -c "insert into orders (customer, total) values ('{USER}', 9.90)"

Look around:

  kubectl -n {USERS_NAMESPACE} get urt,deploy,svc,ingress,pods
  kubectl -n {USERS_NAMESPACE} describe urt {USER}

See it in a browser, and kill a pod while you look:

  {page}

Rows inserted into the table orders, as they arrive from {USER}'s pod:
""",
        flush=True,
    )


def open_browser(page: str) -> None:
    """Open a page if there is a screen. A browser that does not start is not an error."""
    if sys.platform != "darwin" and not ({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()):
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-m", "webbrowser", "-t", page],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=OPEN_BROWSER_TIMEOUT_S,
        )


def show_event(event: dict[str, Any]) -> None:
    now = time.strftime("%H:%M:%S")
    print(f"  {now}  {event['id']:>5}  {event['event']:<14} {json.dumps(event['data'])}", flush=True)


async def _insert_orders(url: str) -> None:
    while True:
        # One connection per insert: a reader of the demo may restart Postgres.
        try:
            connection = await asyncpg.connect(url, timeout=10)
            try:
                await connection.execute(
                    "insert into public.orders (customer, total) values ($1, round((random() * 100)::numeric, 2))", USER
                )
            finally:
                await connection.close(timeout=5)
        except (OSError, asyncpg.PostgresError) as error:
            print(f"  (the database does not answer: {type(error).__name__})", flush=True)
        await asyncio.sleep(INSERT_INTERVAL_S)


async def watch(system: System, url: str, *, once: bool) -> None:
    """Insert rows and show the events that arrive; with `once`, until enough have arrived.

    Raises:
        TimeoutError: nothing came.
    """
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(TABLE)
    finally:
        await connection.close(timeout=5)
    token, address = system.token(USER), system.websocket_url(USER)
    async with ResumingClient(address, token, on_event=show_event) as client:
        inserting = asyncio.create_task(_insert_orders(url))
        try:
            await client.wait_for_events(ENOUGH_EVENTS, timeout=FIRST_EVENTS_TIMEOUT_S)
            if once:
                return
            await inserting
        finally:
            inserting.cancel()
            await asyncio.gather(inserting, return_exceptions=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="make up",
        description="Bring up a cluster with userrealtime and a first user, and show that user's events.",
    )
    parser.add_argument("--once", action="store_true", help="end after the first events, as with CI=true")
    options = parser.parse_args(arguments)
    heed_sigterm()
    once = options.once or os.environ.get("CI") == "true" or not sys.stdout.isatty()
    started = time.monotonic()
    try:
        system = install(choose())
        system.apply_user(USER)
        page = demo.install(system)
        system.wait_ready(USER)
        show(system, page)
        if not once:
            open_browser(page)
        with system.database.from_host() as url:
            asyncio.run(watch(system, url, once=once))
    except ClusterError as error:
        print(f"\nmake up: {error}", file=sys.stderr)
        return 1
    except TimeoutError:
        print(f"\nmake up: no event arrived within {FIRST_EVENTS_TIMEOUT_S:.0f} s", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The cluster stays: `make up` continues, `make down` removes it.")
        return 0
    print(f"\nAll up after {time.monotonic() - started:.0f} s: {page} in a browser. `make down` removes it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
