"""Pusher with the clients from npm: pusher-js and laravel-echo, over a network with faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from testing.clients.application import EventApplication
from testing.clients.faults import breaking, cut, drain, kill, replaced
from testing.clients.fixture import ClientFixture, serving
from testing.clients.javascript import install_locked
from testing.faults.proxy import Link
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.relay.harness import KEY, token
from userrealtime_core.protocols.pusher import MAX_UNMARKED

SOURCE: Final = Path(__file__).parent / "pusher"
CLIENTS: Final = ("pusher", "echo")
VALUES: Final = ("0", "false", "null", '""', "[]", "{}", '{"a": {"b": [1, "é", null]}}', "1.50", '"44"', '"\\u0001\\""')
BASE_PATH: Final = "/urt-alice-1234"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script and the packages that it needs, outside of the source tree."""
    return install_locked(SOURCE, tmp_path_factory.mktemp("pusher") / "application")


@pytest.fixture
async def stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    variables = {"PROTOCOLS": "pusher", "BASE_PATH": BASE_PATH, "MAX_BROADCASTS_PER_SECOND": "0"}
    async with ClientFixture(postgres_server, **variables) as stage:
        yield stage


@pytest.fixture
async def broadcasting_stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    """A user whose clients may send broadcasts."""
    async with ClientFixture(postgres_server, PROTOCOLS="pusher", BASE_PATH=BASE_PATH) as stage:
        yield stage


class Pusher(EventApplication):
    """A process with a client."""

    async def state(self, state: str) -> None:
        await self.until(lambda line: line.get("state") == state)

    async def at(self, number: int) -> None:
        """Read until the application knows that it has this position."""
        await self.until(lambda line: line.get("position", {}).get("id") == number)


@asynccontextmanager
async def application(
    stage: ClientFixture, folder: Path, client: str = "pusher", auth: str = "handler", **options: Any
) -> AsyncIterator[Pusher]:
    async with serving(stage) as url:
        given = {
            "client": client,
            "host": "127.0.0.1",
            "port": stage.link.port,
            "path": BASE_PATH,
            "tokens": f"{url}/token",
            "auth": auth,
            "key": KEY,
            **options,
        }
        async with Pusher.running(folder, "pusher.mjs", given) as alice:
            yield alice


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("auth", ["handler", "endpoint", "signature"])
async def test_a_client_subscribes_under_a_prefix(
    stage: ClientFixture, installed: Path, client: str, auth: str
) -> None:
    async with application(stage, installed, client, auth) as alice:
        subscribed = await alice.has("subscribed")
        assert subscribed["data"].keys() == {"cursor", "epoch", "earliest"}
        await alice.event(await stage.publish())
        if client == "echo":
            await alice.until(lambda line: line.get("listened") == {"n": 1})


async def test_data_of_each_type(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, resume=False) as alice:
        await alice.has("subscribed")
        values = await stage.publish_values([f"'{value}'" for value in (*VALUES, '"last"')])
        await alice.until(lambda line: line.get("data") == "last")
        assert [event["data"] for event in alice.events] == [json.loads(value) for value in values]
        assert {event["event"] for event in alice.events} == {"test.value"}


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_client_that_passes_its_position_gets_each_event_once(
    stage: ClientFixture, installed: Path, client: str
) -> None:
    async with application(stage, installed, client) as alice:
        await alice.has("position")
        last = 0
        for disturb in (kill, cut, drain, kill):
            await alice.event(await stage.publish(3))
            await alice.at(last + 3)
            disturbing = asyncio.create_task(disturb(stage))
            await stage.publish(3)
            await disturbing
            last = await stage.publish(3)
            await alice.event(last)
            if alice.lines[-1].get("position", {}).get("id") != last:
                await alice.at(last)
        assert alice.numbers == list(range(1, last + 1))
        assert not any("reset" in line or "refused" in line for line in alice.lines)


async def test_a_rolling_restart_disconnects_no_client_for_good(stage: ClientFixture, installed: Path) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(application(stage, installed, each)) for each in CLIENTS * 2]
        for each in clients:
            await each.has("position")
        async with replaced(stage, PROTOCOLS="pusher", BASE_PATH=BASE_PATH) as last:
            for each in clients:
                await each.event(last)
                assert each.numbers == list(range(1, last + 1))
                states = [line["state"] for line in each.lines if "state" in line]
                assert set(states) <= {"connecting", "connected"}
                assert sum("subscribed" in line for line in each.lines) == 2


@pytest.mark.parametrize(("auth", "envelope"), [("handler", True), ("endpoint", True), ("handler", False)])
async def test_a_connection_that_breaks_within_a_batch(
    stage: ClientFixture, installed: Path, auth: str, envelope: bool
) -> None:
    async with (
        Link(stage.relay.port, lambda: breaking(link, 20_000)) as link,
        application(stage, installed, auth=auth, envelope=envelope, port=link.port) as alice,
    ):
        await alice.has("subscribed")
        last = await stage.publish(500)
        await alice.until(lambda line: (line.get("data") or {}).get("n") == last)
        connections = sum("subscribed" in line for line in alice.lines)
        assert connections > 2
        assert sorted(set(alice.numbers)) == list(range(1, last + 1))
        repeated = len(alice.numbers) - last
        assert repeated <= (0 if envelope else (connections - 1) * MAX_UNMARKED)


async def test_without_a_position_a_client_begins_at_the_head(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, resume=False) as alice:
        await alice.has("subscribed")
        await alice.event(await stage.publish())
        await stage.refuse(True)
        await stage.publish(2)
        await stage.refuse(False)
        assert (await alice.has("subscribed"))["data"]["cursor"] == 3
        await alice.event(await stage.publish())
        assert alice.numbers == [1, 4]
        assert not any("position" in line for line in alice.lines)


@pytest.mark.parametrize("reason", ["too-old", "epoch"])
async def test_a_client_learns_of_a_gap(stage: ClientFixture, installed: Path, reason: str) -> None:
    async with application(stage, installed) as alice:
        await alice.has("subscribed")
        await stage.publish()
        await alice.at(1)
        await stage.refuse(True)
        await stage.publish(3)
        await (stage.replace() if reason == "epoch" else stage.forget())
        await stage.refuse(False)
        reset = await alice.has("reset")
        assert (reset["reset"]["reason"], reset["reset"]["cursor"]) == (reason, 4)
        await alice.at(4)
        await stage.restart(grace_s=0)
        await alice.event(await stage.publish())
        assert alice.numbers == [1, 5]


async def test_a_channel_gets_its_events(stage: ClientFixture, installed: Path) -> None:
    channels = ["private-Room.7", "private-log"]
    async with application(stage, installed, channels=channels) as alice:
        for _ in channels:
            await alice.has("subscribed")
        async with stage._connected() as connection:
            for event in ("Other#a", "Room.7#a", "Room.7", "Room.7#b#c", "last"):
                await connection.execute("select userrealtime.publish('alice', $1, '{}')", event)
        # The channels have separate tasks in the relay, so the other one may be earlier.
        await alice.until(lambda line: line.get("position", {}).get("id") == 5 and line["channel"] == channels[0])
        assert [line["event"] for line in alice.events if line["channel"] == "private-Room.7"] == ["a", "b#c"]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("auth", ["handler", "endpoint", "signature"])
async def test_a_presence_channel_has_one_member(stage: ClientFixture, installed: Path, client: str, auth: str) -> None:
    async with (
        application(stage, installed, client, auth, channels=["presence-log"]) as alice,
        application(stage, installed, client, auth, channels=["presence-log"]) as other,
    ):
        for each in (alice, other):
            members = (await each.has("subscribed"))["data"]["members"]
            assert (members["count"], members["myID"], members["me"]["id"]) == (1, "alice", "alice")
        last = await stage.publish()
        for each in (alice, other):
            await each.event(last)
            assert not any("member" in line["event"] for line in each.events)
        if client == "echo":
            [here] = [line["here"] for line in alice.lines if "here" in line]
            assert here == [{} if auth == "endpoint" else {"name": "Alice"}]


@pytest.mark.parametrize("auth", ["handler", "endpoint", "signature"])
async def test_a_user_who_has_signed_in_needs_no_channel(stage: ClientFixture, installed: Path, auth: str) -> None:
    async with application(stage, installed, auth=auth, channels=[], signin=True, resume=False) as alice:
        await alice.state("connected")
        for number in (1, 2):
            # The client subscribes to the channel of the user, and does not report when this has succeeded.
            publishing = asyncio.create_task(_publish_until_cancelled(stage))
            await alice.has("user_event")
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            if number == 1:
                await stage.restart(grace_s=0)
                await alice.state("connected")


async def _publish_until_cancelled(stage: ClientFixture) -> None:
    while True:
        await stage.publish()
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("client", CLIENTS)
async def test_client_events_are_stored_once(stage: ClientFixture, installed: Path, client: str) -> None:
    async with application(stage, installed, client) as alice:
        await alice.has("subscribed")
        alice.send(trigger="client-note", data={"text": "x"})
        alice.send(trigger="client-" + "x" * 300, data={})
        assert (await alice.has("error"))["error"]["code"] == 4301
        [row] = await stage.inbox()
        assert (row["event"], row["data"]) == ("note", {"text": "x"})


async def test_client_events_reach_the_other_clients(broadcasting_stage: ClientFixture, installed: Path) -> None:
    stage, room = broadcasting_stage, ["private-room"]
    async with (
        application(stage, installed, "pusher", channels=room) as one,
        application(stage, installed, "echo", channels=room) as two,
        application(stage, installed, "pusher", channels=["presence-room"]) as member,
    ):
        for each in (one, two, member):
            await each.has("subscribed")
        for sender, receiver in ((one, two), (two, one)):
            for number in range(3):
                sender.send(trigger="client-typing", data={"n": number})
            for each in (receiver, member):
                for number in range(3):
                    line = await each.has("event")
                    assert (line["event"], line["data"]) == ("client-typing", {"n": number})
        one.send(trigger="client-typing", data={"text": "x" * 7000})
        assert (await one.has("error"))["error"]["code"] == 4301
        arrived = asyncio.create_task(one.until(lambda line: line.get("event") == "progress"))
        async with asyncio.timeout(PATIENCE_S):
            while not arrived.done():
                await stage.broadcast("first", event="room#progress")
                await asyncio.wait([arrived], timeout=0.2)
        assert arrived.result()["data"] == "first"
        for each in (two, member):
            await each.until(lambda line: line.get("event") == "progress")
        for each in (one, two):  # neither has received its own
            assert len([line for line in each.events if line["event"] == "client-typing"]) == 3
        assert [line["whispered"]["n"] for line in two.lines if "whispered" in line] == [0, 1, 2]
        assert {line["from"] for line in member.lines if "from" in line} == {"alice"}
        assert await stage.inbox() == []


async def test_large_events_and_large_messages(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed) as alice:
        await alice.has("subscribed")
        await stage.publish_values(["to_jsonb(repeat('x', 900000))"])
        large = await alice.until(lambda line: line.get("event") == "test.value")
        assert large["data"] == "x" * 900_000
        await alice.at(1)
        # A message over the limit ends the connection, and is not stored.
        alice.send(trigger="client-note", data={"text": "x" * (64 << 10)})
        await alice.state("connecting")
        await alice.has("subscribed")
        assert await stage.inbox() == []


@pytest.mark.parametrize("auth", ["handler", "endpoint"])
async def test_a_wrong_token_is_refused(stage: ClientFixture, installed: Path, auth: str) -> None:
    async with application(stage, installed, auth=auth, token=token(sub="bob")) as alice:
        refused = await alice.has("refused")
        assert refused["data"]["status"] == 401
        if auth == "endpoint":
            # The channel is not stuck after an error of the endpoint.
            alice.send(subscribe="private-log")
            await alice.has("subscribed")
        else:
            await alice.state("disconnected")


async def test_a_client_asks_for_a_token_when_one_expires(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, first_life_s=2) as alice:
        await alice.has("subscribed")
        await stage.publish()
        await alice.at(1)
        await alice.until(lambda line: line.get("state") == "connecting")
        await stage.publish(2)
        await alice.event(3)
        assert alice.numbers == [1, 2, 3]


async def test_an_expired_token_of_the_endpoint_causes_no_loop(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, auth="endpoint", first_life_s=2) as alice:
        await alice.has("subscribed")
        refused = await alice.has("refused")
        assert refused["data"]["status"] == 401
        alice.send(subscribe="private-log")
        await alice.has("subscribed")
        assert [line["state"] for line in alice.lines if "state" in line].count("connecting") <= 2


async def test_a_client_detects_a_silent_relay(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, activityTimeout=1000, pongTimeout=1000) as alice:
        await alice.has("subscribed")
        await stage.publish()
        await alice.at(1)
        await asyncio.sleep(3)  # pings are answered
        assert not any(line.get("state") == "disconnected" for line in alice.lines)
        await stage.strand()
        await stage.publish()
        await alice.event(2)
        assert alice.numbers == [1, 2]
