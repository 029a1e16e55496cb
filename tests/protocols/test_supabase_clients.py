"""Supabase Realtime with the clients from npm: realtime-js and supabase-js, over a network with faults."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from testing.browser import browser
from testing.clients.application import EventApplication
from testing.clients.faults import breaking, cut, drain, kill, replaced
from testing.clients.fixture import ClientFixture, serving
from testing.clients.javascript import install_locked
from testing.faults.proxy import Link
from testing.local.postgres import LocalPostgres
from testing.relay.harness import token
from userrealtime_core.protocols.phoenix import VERSIONS
from userrealtime_core.protocols.supabase import MAX_UNMARKED

SOURCE: Final = Path(__file__).parent / "supabase"
CLIENTS: Final = ("realtime", "supabase")
VALUES: Final = ("0", "false", "null", '""', "[]", "{}", '{"a": {"b": [1, "é", null]}}', "1.50", '"44"', '"\\u0001\\""')
BASE_PATH: Final = "/urt-alice-1234"
ALL: Final = {"event": "*", "schema": "public"}
ACKNOWLEDGED: Final = {"name": "log", "config": {"broadcast": {"ack": True}}}
PAGE: Final = """
    (async () => {
      const script = document.createElement("script");
      script.src = "/umd/supabase.js";
      await new Promise((resolve, reject) => Object.assign(script, { onload: resolve, onerror: reject })
        && document.head.append(script));
      window.numbers = [];
      window.statuses = [];
      const accessToken = async () => (await fetch("/token")).text();
      const client = supabase.createClient(%r, "any", { accessToken });
      await client.realtime.setAuth();
      window.channel = client.channel("log");
      channel.updateJoinPayload({ last_event_id: "" });
      channel.on("broadcast", { event: "test.event" }, ({ payload, meta }) => {
        numbers.push(payload.n);
        channel.updateJoinPayload({ last_event_id: meta.id, epoch: meta.epoch });
      });
      channel.subscribe((status) => statuses.push(status));
    })()
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script and the packages that it needs, outside of the source tree."""
    return install_locked(SOURCE, tmp_path_factory.mktemp("supabase") / "application")


@pytest.fixture
async def stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    async with ClientFixture(postgres_server, PROTOCOLS="supabase", BASE_PATH=BASE_PATH) as stage:
        yield stage


class Client(EventApplication):
    """A process with a client."""

    async def status(self, status: str) -> dict[str, Any]:
        """Read until a channel reports this status, and return the line."""
        return await self.until(lambda line: line.get("status") == status)

    async def broadcast(self, name: str) -> dict[str, Any]:
        """Read until the next event with this name, and return the line."""
        return await self.until(lambda line: line.get("event") == name)

    async def system(self, message: str) -> dict[str, Any]:
        """Read until the next `system` message that begins so, and return it."""
        line = await self.until(lambda line: line.get("system", {}).get("message", "").startswith(message))
        found: dict[str, Any] = line["system"]
        return found

    async def result(self, **line: Any) -> Any:
        """Do what a line requests, and return the result."""
        self.send(**line)
        return (await self.has("result"))["result"]

    @property
    def statuses(self) -> list[str]:
        return [line["status"] for line in self.lines if "status" in line]


@asynccontextmanager
async def application(
    stage: ClientFixture, folder: Path, client: str = "realtime", *, port: int | None = None, **options: Any
) -> AsyncIterator[Client]:
    async with serving(stage) as url:
        given = {
            "client": client,
            "url": f"http://127.0.0.1:{port or stage.link.port}{BASE_PATH}",
            "tokens": f"{url}/token",
            **options,
        }
        async with Client.running(folder, "supabase.mjs", given) as alice:
            yield alice


async def execute(stage: ClientFixture, *statements: str) -> None:
    """Run statements in the database, each in a transaction of its own."""
    async with stage._connected() as connection:
        for statement in statements:
            await connection.execute(statement)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("vsn", VERSIONS)
async def test_a_client_subscribes_under_a_prefix(stage: ClientFixture, installed: Path, client: str, vsn: str) -> None:
    async with application(stage, installed, client, vsn=vsn) as alice:
        await alice.status("SUBSCRIBED")
        assert (await alice.system("connected"))["cursor"] == 0
        await alice.event(await stage.publish())
        assert alice.events[0]["meta"]["id"] == 1
        assert alice.statuses == ["SUBSCRIBED"]


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_token_that_comes_after_the_first_join(stage: ClientFixture, installed: Path, client: str) -> None:
    async with application(stage, installed, client, early=False) as alice:
        await alice.status("SUBSCRIBED")
        assert alice.statuses in (["SUBSCRIBED"], ["CHANNEL_ERROR", "SUBSCRIBED"])
        assert all(line["error"] is None or "Unauthorized" in line["error"] for line in alice.lines if "status" in line)
        await alice.event(await stage.publish())


async def test_a_wrong_token_is_refused(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, token=token(sub="bob")) as alice:
        for _ in range(2):
            assert "InvalidJWTToken" in (await alice.status("CHANNEL_ERROR"))["error"]
        await stage.publish()
        await alice.status("CHANNEL_ERROR")
        assert alice.events == []


@pytest.mark.parametrize("vsn", VERSIONS)
async def test_data_of_each_type(stage: ClientFixture, installed: Path, vsn: str) -> None:
    async with application(stage, installed, vsn=vsn) as alice:
        await alice.status("SUBSCRIBED")
        values = await stage.publish_values([f"'{value}'" for value in (*VALUES, '"last"')])
        await alice.until(lambda line: line.get("data") == "last")
        assert [event["data"] for event in alice.events] == [json.loads(value) for value in values]
        assert {event["event"] for event in alice.events} == {"test.value"}


async def test_changes_of_a_table(stage: ClientFixture, installed: Path) -> None:
    bindings = [
        {**ALL, "table": "orders"},
        {**ALL, "event": "INSERT"},
        {**ALL, "event": "DELETE", "table": "lines"},
    ]
    await execute(
        stage,
        "create table orders (id int primary key, owner text, total numeric)",
        "create trigger publish after insert or update or delete on orders "
        "for each row execute function userrealtime.capture('owner', 'orders', 'update=both')",
    )
    async with application(stage, installed, channels=[{"name": "any", "changes": bindings}, {"name": "log"}]) as alice:
        await alice.system("Subscribed to PostgreSQL")
        for _ in range(2):
            await alice.system("connected")
        await execute(
            stage,
            "insert into orders values (1, 'alice', 1.50)",
            "update orders set total = 2",
            "update orders set owner = 'bob'",
        )
        await alice.until(lambda line: line.get("position") == 3 and line["channel"] == "any")
        changes = [(line["change"], bindings.index(line["binding"])) for line in alice.lines if "change" in line]
        row = {"id": 1, "owner": "alice", "total": 1.5}
        kinds = [(change["eventType"], binding) for change, binding in changes]
        assert kinds == [("INSERT", 0), ("INSERT", 1), ("UPDATE", 0), ("DELETE", 0)]
        assert (changes[0][0]["new"], changes[0][0]["old"]) == (row, {})
        assert (changes[2][0]["new"], changes[2][0]["old"]) == ({**row, "total": 2}, row)
        assert (changes[3][0]["new"], changes[3][0]["old"]) == ({}, {**row, "total": 2})
        for change, _ in changes:
            assert (change["schema"], change["table"], change["errors"]) == ("public", "orders", None)
            assert change["commit_timestamp"].endswith("Z")
        # The other channel has no bindings, so it gets them as broadcasts.
        while len(alice.events) < 3:
            await alice.has("event")
        assert [(line["event"], line["channel"]) for line in alice.events] == [
            ("orders.insert", "log"),
            ("orders.update", "log"),
            ("orders.delete", "log"),
        ]


async def test_a_filter_is_refused(stage: ClientFixture, installed: Path) -> None:
    channels = [{"name": "log", "changes": [{**ALL, "table": "orders", "filter": "id=eq.1"}]}, {"name": "other"}]
    async with application(stage, installed, channels=channels) as alice:
        refused = await alice.status("CHANNEL_ERROR")
        assert (refused["channel"], "filter is not supported" in refused["error"]) == ("log", True)
        await alice.until(lambda line: line.get("channel") == "other" and line.get("status") == "SUBSCRIBED")


@pytest.mark.parametrize(("client", "vsn"), [("realtime", "1.0.0"), ("supabase", "2.0.0")])
async def test_a_client_that_passes_its_position_gets_each_event_once(
    stage: ClientFixture, installed: Path, client: str, vsn: str
) -> None:
    async with application(stage, installed, client, vsn=vsn) as alice:
        await alice.system("connected")
        # Before the first event, the position is that of the `system` message.
        await kill(stage)
        last = 0
        for disturb in (kill, cut, drain, kill):
            await alice.event(await stage.publish(3))
            disturbing = asyncio.create_task(disturb(stage))
            await stage.publish(3)
            await disturbing
            last = await stage.publish(3)
            await alice.event(last)
        assert alice.numbers == list(range(1, last + 1))
        assert not any(line.get("system", {}).get("message", "").startswith("reset") for line in alice.lines)
        assert set(alice.statuses) <= {"SUBSCRIBED", "CHANNEL_ERROR"}


@pytest.mark.parametrize("changes", [False, True])
async def test_a_connection_that_breaks_within_a_batch(stage: ClientFixture, installed: Path, changes: bool) -> None:
    channel = {"name": "log", "changes": [{**ALL, "table": "test"}] if changes else []}
    async with (
        Link(stage.relay.port, lambda: breaking(link, 20_000)) as link,
        application(stage, installed, channels=[channel], port=link.port) as alice,
    ):
        await alice.system("connected")
        count = 500
        if changes:
            await execute(
                stage,
                "select userrealtime.publish('alice', 'test.insert', jsonb_build_object('n', n)) "
                f"from generate_series(1, {count}) n",
            )
            await alice.until(lambda line: line.get("position") == count)
            numbers = [line["change"]["new"]["n"] for line in alice.lines if "change" in line]
        else:
            await alice.event(await stage.publish(count))
            numbers = alice.numbers
        connections = alice.statuses.count("SUBSCRIBED")
        assert connections > 2
        assert sorted(set(numbers)) == list(range(1, count + 1))
        assert len(numbers) - count <= ((connections - 1) * MAX_UNMARKED if changes else 0)


async def test_a_rolling_restart_disconnects_no_client_for_good(stage: ClientFixture, installed: Path) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(application(stage, installed, each)) for each in CLIENTS * 2]
        for each in clients:
            await each.system("connected")
        async with replaced(stage, PROTOCOLS="supabase", BASE_PATH=BASE_PATH) as last:
            for each in clients:
                await each.event(last)
                assert each.numbers == list(range(1, last + 1))
                assert each.statuses.count("SUBSCRIBED") == 2


async def test_without_a_position_a_client_begins_at_the_head(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, resume=False) as alice:
        await alice.system("connected")
        await alice.event(await stage.publish())
        await stage.refuse(True)
        await stage.publish(2)
        await stage.refuse(False)
        assert (await alice.system("connected"))["cursor"] == 3
        await alice.event(await stage.publish())
        assert alice.numbers == [1, 4]


async def test_a_replay_since_a_time(stage: ClientFixture, installed: Path) -> None:
    await stage.publish(3)
    config = {"private": True, "broadcast": {"replay": {"since": int((time.time() - 600) * 1000), "limit": 25}}}
    async with application(stage, installed, channels=[{"name": "log", "config": config}]) as alice:
        await alice.event(3)
        await alice.event(await stage.publish())
        assert [(line["data"]["n"], line["meta"].get("replayed", False)) for line in alice.events] == [
            (1, True),
            (2, True),
            (3, True),
            (4, False),
        ]
        await kill(stage)
        await alice.event(await stage.publish())
        # The client repeats the time, and the position is newer.
        assert alice.numbers == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("reason", ["too-old", "epoch"])
async def test_a_client_learns_of_a_gap(stage: ClientFixture, installed: Path, reason: str) -> None:
    async with application(stage, installed) as alice:
        await alice.system("connected")
        await alice.event(await stage.publish())
        await stage.refuse(True)
        await stage.publish(3)
        await (stage.replace() if reason == "epoch" else stage.forget())
        await stage.refuse(False)
        reset = await alice.system("reset")
        assert (reset["reason"], reset["cursor"]) == (reason, 4)
        await stage.restart(grace_s=0)
        await alice.event(await stage.publish())
        assert alice.numbers == [1, 5]


async def test_a_channel_gets_its_events(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, channels=[{"name": "Room:7"}, {"name": "log"}]) as alice:
        for _ in range(2):
            await alice.system("connected")
        for event in ("Other#a", "Room:7#a", "Room:7", "Room:7#b#c", "last"):
            await execute(stage, f"select userrealtime.publish('alice', '{event}', '{{}}')")
        await alice.until(lambda line: line.get("position") == 5 and line["channel"] == "Room:7")
        assert [line["event"] for line in alice.events if line["channel"] == "Room:7"] == ["a", "b#c"]


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_token_is_replaced_in_place(stage: ClientFixture, installed: Path, client: str) -> None:
    options = {"first_life_s": 4, "life_s": 3600, "heartbeatIntervalMs": 1000}
    async with application(stage, installed, client, **options) as alice:
        await alice.status("SUBSCRIBED")
        await asyncio.sleep(5)
        await alice.event(await stage.publish())
        assert alice.statuses == ["SUBSCRIBED"]


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_token_that_expires_causes_no_loss(stage: ClientFixture, installed: Path, client: str) -> None:
    # Without heartbeats, with which the client would fetch a new token.
    async with application(stage, installed, client, life_s=3, heartbeatIntervalMs=600_000) as alice:
        await alice.system("connected")
        for _ in range(2):
            assert (await alice.system("Token has expired"))["status"] == "error"
            await stage.publish(2)
            await alice.status("SUBSCRIBED")
        last = await stage.publish()
        await alice.event(last)
        assert alice.numbers == list(range(1, last + 1))


@pytest.mark.parametrize("vsn", VERSIONS)
async def test_broadcasts_between_clients(stage: ClientFixture, installed: Path, vsn: str) -> None:
    echoing = {"name": "log", "config": {"broadcast": {"ack": True, "self": True}}}
    async with (
        application(stage, installed, vsn=vsn, channels=[ACKNOWLEDGED]) as alice,
        application(stage, installed, "supabase", vsn=vsn, channels=[echoing]) as other,
    ):
        for each in (alice, other):
            await each.status("SUBSCRIBED")
        assert await alice.result(send={"type": "broadcast", "event": "typing", "payload": {"é": 1}}) == "ok"
        heard = await other.broadcast("typing")
        assert (heard["data"], heard["meta"]) == ({"é": 1}, None)
        assert await other.result(send={"type": "broadcast", "event": "own", "payload": {}}) == "ok"
        await alice.broadcast("own")
        if not any(event["event"] == "own" for event in other.events):
            await other.broadcast("own")
        assert await alice.result(http={"event": "http/é", "payload": [1]}) == {"success": True}
        for each in (alice, other):
            await each.broadcast("http/é")
        assert not any(event["event"] == "typing" for event in alice.events)
        await stage.broadcast({"from": "server"})
        for each in (alice, other):
            assert (await each.broadcast("test.broadcast"))["data"] == {"from": "server"}
        assert await alice.result(send={"type": "broadcast", "event": "x" * 254, "payload": {}}) == "error"


async def test_a_broadcast_before_the_channel_is_joined_goes_over_http(stage: ClientFixture, installed: Path) -> None:
    async with (
        application(stage, installed) as alice,
        application(stage, installed, channels=[{"name": "log", "changes": [{**ALL, "filter": "id=eq.1"}]}]) as other,
    ):
        await alice.status("SUBSCRIBED")
        await other.status("CHANNEL_ERROR")
        assert await other.result(send={"type": "broadcast", "event": "early", "payload": 1}) == "ok"
        assert (await alice.broadcast("early"))["data"] == 1


async def test_a_binary_broadcast_is_refused(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, channels=[ACKNOWLEDGED]) as alice:
        await alice.status("SUBSCRIBED")
        assert await alice.result(binary="a") == "error"


@pytest.mark.parametrize("vsn", VERSIONS)
async def test_messages_for_the_application_are_stored_once(stage: ClientFixture, installed: Path, vsn: str) -> None:
    async with application(stage, installed, vsn=vsn) as alice:
        await alice.status("SUBSCRIBED")
        message = {"type": "publish", "event": "note", "payload": {"text": "x"}, "ref": "mine"}
        for _ in range(2):
            assert await alice.result(send=message) == "ok"
        assert await alice.result(send={**message, "event": "x" * 254}) == "error"
        [row] = await stage.inbox()
        assert (row["ref"], row["event"], row["data"]) == ("mine", "note", {"text": "x"})


async def test_presence_is_refused(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, channels=[{"name": "log", "presence": True}]) as alice:
        assert (await alice.has("presence"))["presence"] == {}
        assert await alice.result(track={"online": True}) == "error"
        await alice.event(await stage.publish())


async def test_a_channel_that_is_left_and_joined_again(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed) as alice:
        await alice.system("connected")
        alice.send(unsubscribe=True, subscribe={"name": "log"})
        await alice.status("CLOSED")
        await alice.event(await stage.publish())
        assert alice.numbers == [1]


async def test_large_events_and_large_messages(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed) as alice:
        await alice.system("connected")
        await stage.publish_values(["to_jsonb(repeat('x', 900000))"])
        large = await alice.broadcast("test.value")
        assert large["data"] == "x" * 900_000
        # A message over the limit ends the connection, and is not stored.
        alice.send(send={"type": "publish", "event": "note", "payload": "x" * (64 << 10)})
        await alice.status("CHANNEL_ERROR")
        await alice.status("SUBSCRIBED")
        assert await stage.inbox() == []


async def test_a_client_detects_a_silent_relay(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, heartbeatIntervalMs=1000) as alice:
        await alice.system("connected")
        await alice.event(await stage.publish())
        await asyncio.sleep(3)  # heartbeats are answered
        assert alice.statuses == ["SUBSCRIBED"]
        await stage.strand()
        await stage.publish()
        await alice.event(2)
        assert alice.numbers == [1, 2]
        assert "heartbeat timeout" in str([line.get("error") for line in alice.lines])


@pytest.mark.usefixtures("chromium_is_there")
async def test_a_page_of_another_origin(stage: ClientFixture, installed: Path) -> None:
    umd = installed / "node_modules" / "@supabase" / "supabase-js" / "dist" / "umd"
    async with (
        application(stage, installed) as alice,
        serving(stage, umd) as url,
        browser() as chromium,
        chromium.page() as page,
    ):
        await alice.status("SUBSCRIBED")
        await page.goto(f"{url}/token")
        await page.evaluate(PAGE % f"{stage.url}{BASE_PATH}")
        await page.wait_for("statuses.at(-1) === 'SUBSCRIBED'")
        await stage.publish(3)
        await page.wait_for("numbers.length === 3")
        await stage.restart(grace_s=0)
        await stage.publish(3)
        await page.wait_for("numbers.length === 6")
        assert await page.evaluate("numbers") == [1, 2, 3, 4, 5, 6]
        await alice.event(6)
        # The request has the header `apikey`, which the relay must permit to pages of other origins.
        assert await page.evaluate("channel.httpSend('typing', {text: 'é'})") == {"success": True}
        assert (await alice.broadcast("typing"))["data"] == {"text": "é"}
