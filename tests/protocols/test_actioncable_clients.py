"""Action Cable with the clients from npm: @rails/actioncable and @anycable/core, over a network with faults."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from testing.clients.application import Application
from testing.clients.faults import cut, drain, kill
from testing.clients.fixture import ClientFixture, serving
from testing.clients.javascript import install_locked
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.relay.harness import token

SOURCE: Final = Path(__file__).parent / "actioncable"
CLIENTS: Final = ("rails", "plain", "extended")
VALUES: Final = ("0", "false", "null", '""', "[]", "{}", '{"a": {"b": [1, "é", null]}}', "1.50", '"\\u0001\\""')


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script and the packages that it needs, outside of the source tree."""
    return install_locked(SOURCE, tmp_path_factory.mktemp("actioncable") / "application")


@pytest.fixture
async def stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    async with ClientFixture(postgres_server, PROTOCOLS="actioncable", ALLOW_QUERY_TOKEN="true") as stage:
        yield stage


class Cable(Application):
    """A process with a client."""

    async def connected(self) -> dict[str, Any]:
        return await self.until(lambda line: "connected" in line)

    async def message(self, kind: str) -> dict[str, Any]:
        """Read until the next message of this type, and return it."""
        line = await self.until(lambda line: line.get("received", {}).get("type") == kind)
        message: dict[str, Any] = line["received"]
        return message

    async def event(self, number: int) -> None:
        """Read until the event with this number."""
        if self.ids and self.ids[-1] >= number:
            return
        await self.until(lambda line: line.get("received", {}).get("id") == number)

    def perform(self, action: str, **data: Any) -> None:
        self.send(perform=action, data=data)

    def whisper(self, data: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"whisper": data}).encode() + b"\n")

    @property
    def events(self) -> list[dict[str, Any]]:
        messages = [line["received"] for line in self.lines if "received" in line]
        return [message for message in messages if message["type"] == "event"]

    @property
    def ids(self) -> list[int]:
        return [event["id"] for event in self.events]


@asynccontextmanager
async def cable(stage: ClientFixture, folder: Path, client: str, **options: Any) -> AsyncIterator[Cable]:
    async with serving(stage) as url:
        given = {
            "client": client,
            "url": f"{stage.url.replace('http', 'ws')}/cable",
            "tokens": f"{url}/token",
            **options,
        }
        async with Cable.running(folder, "cable.mjs", given) as alice:
            yield alice


@pytest.mark.parametrize(
    ("client", "strategy"),
    [("rails", None), *((each, how) for each in ("plain", "extended") for how in ("param", "sub-protocol", "header"))],
)
async def test_a_client_connects_with_its_token(
    stage: ClientFixture, installed: Path, client: str, strategy: str | None
) -> None:
    async with cable(stage, installed, client, **({} if strategy is None else {"strategy": strategy})) as alice:
        assert await alice.connected() == {"connected": True, "reconnected": False}
        await alice.event(await stage.publish())


@pytest.mark.parametrize("client", CLIENTS)
async def test_each_client_gets_values_of_all_types(stage: ClientFixture, installed: Path, client: str) -> None:
    async with cable(stage, installed, client) as alice:
        await alice.connected()
        values = await stage.publish_values([f"'{value}'" for value in VALUES])
        await alice.event(len(values))
        assert [event["data"] for event in alice.events] == [json.loads(value) for value in values]
        assert {event["event"] for event in alice.events} == {"test.value"}


async def test_each_client_gets_each_event_once_over_a_killed_relay(stage: ClientFixture, installed: Path) -> None:
    async with AsyncExitStack() as stack:
        cables = [await stack.enter_async_context(cable(stage, installed, client)) for client in CLIENTS]
        for each in cables:
            await each.connected()
        # The plain protocol learns its first position by a message. AnyCable's client reports it before the connection.
        for each in cables[:2]:
            if not any("received" in line for line in each.lines):
                await each.message("connected")
        last = 0
        # Before the first event, the position of the extended protocol is in its session id.
        for disturb in (kill, cut, drain):
            before = await stage.publish(3) if last else 0
            disturbing = asyncio.create_task(disturb(stage))
            last = await stage.publish(3)
            await disturbing
            last = await stage.publish(3)
            for each in cables:
                await each.event(last)
            assert before < last
        for each in cables:
            assert each.ids == list(range(1, last + 1))
            assert [event["data"]["n"] for event in each.events] == each.ids
            assert not any("closed" in line or "rejected" in line for line in each.lines)


async def test_the_extended_protocol_resumes_over_many_kills(stage: ClientFixture, installed: Path) -> None:
    async with cable(stage, installed, "extended") as alice:
        await alice.connected()
        for _ in range(8):
            await stage.publish(2)
            await stage.restart(grace_s=0)
            await alice.event(await stage.publish(2))
            if alice.lines[-1].get("info") is None:
                await alice.until(lambda line: line.get("info") == "history_received")
        assert alice.ids == list(range(1, 33))


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("reason", ["too-old", "epoch"])
async def test_a_client_learns_of_a_gap(stage: ClientFixture, installed: Path, client: str, reason: str) -> None:
    async with cable(stage, installed, client) as alice:
        await alice.connected()
        await alice.event(await stage.publish())
        await stage.refuse(True)
        await stage.publish(3)
        await (stage.replace() if reason == "epoch" else stage.forget())
        await stage.restart()  # it has the events in memory
        await stage.refuse(False)
        reset = await alice.message("reset")
        assert reset["reason"] == reason
        await alice.event(await stage.publish())
        assert alice.ids[0] == 1
        assert alice.ids[-1] == 5
        if client == "extended":
            assert {"info": "history_not_found"} in alice.lines
            # The client moves on: it resumes after the gap.
            await stage.restart(grace_s=0)
            await alice.event(await stage.publish())
            assert alice.ids[-2:] == [5, 6]


async def test_the_extended_protocol_begins_at_the_time_of_the_page(stage: ClientFixture, installed: Path) -> None:
    await stage.publish(2)
    await asyncio.sleep(1.1)  # the times of the client are whole seconds
    since = int(time.time())
    last = await stage.publish(2)
    async with cable(stage, installed, "extended", since=since) as alice:
        await alice.event(last)
        assert alice.ids == [3, 4]


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_channel_gets_its_events(stage: ClientFixture, installed: Path, client: str) -> None:
    async with cable(stage, installed, client, channel={"channel": "Room", "id": 7}) as alice:
        await alice.connected()
        async with stage._connected() as connection:
            for event in ("Other#a", "Room#a", "Room", "Room#b#c"):
                await connection.execute("select userrealtime.publish('alice', $1, '{}')", event)
        await alice.event(4)
        assert [(event["id"], event["event"]) for event in alice.events] == [(2, "a"), (4, "b#c")]


@pytest.mark.parametrize("client", CLIENTS)
async def test_what_a_client_performs_is_stored_once(stage: ClientFixture, installed: Path, client: str) -> None:
    async with cable(stage, installed, client) as alice:
        await alice.connected()
        alice.perform("note_added", text="x", ref="r1")
        first = await alice.message("ack")
        alice.perform("note_added", text="x", ref="r1")
        assert await alice.message("ack") == first
        alice.perform("x" * 300, ref="r2")
        assert (await alice.message("error"))["ref"] == "r2"
        [row] = await stage.inbox()
        assert (row["ref"], row["event"], row["data"]) == ("r1", "note_added", {"text": "x"})


async def test_whispers_and_broadcasts_reach_the_other_clients(stage: ClientFixture, installed: Path) -> None:
    async with AsyncExitStack() as stack:
        room = {"channel": {"channel": "Room", "id": 7}}
        cables = [await stack.enter_async_context(cable(stage, installed, client, **room)) for client in CLIENTS]
        log = await stack.enter_async_context(cable(stage, installed, "extended"))
        for each in (*cables, log):
            await each.connected()
        rails, plain, extended = cables
        for sender, others in ((extended, (rails, plain)), (plain, (rails, extended))):
            for number in range(3):
                sender.whisper({"n": number})
            for number in range(3):
                whisper = {"type": "broadcast", "event": "whisper", "data": {"n": number}}
                for each in others:
                    assert await each.message("broadcast") == whisper
                assert await log.message("broadcast") == {**whisper, "event": "Room#whisper"}
        # Over a killed relay, events are complete, and broadcasts of the database arrive again.
        await stage.restart(grace_s=0)
        last = await stage.publish(2)
        await log.event(last)
        assert log.ids == list(range(1, last + 1))
        ends = [
            asyncio.create_task(each.until(lambda line: line.get("received", {}).get("data") == "end"))
            for each in (*cables, log)
        ]
        async with asyncio.timeout(PATIENCE_S):
            while not all(end.done() for end in ends):
                await stage.broadcast("end", event="Room#end")
                await asyncio.wait(ends, timeout=0.2)
        assert [end.result()["received"]["event"] for end in ends] == ["end"] * 3 + ["Room#end"]
        for each in (plain, extended):  # neither has received its own
            broadcasts = [
                line["received"] for line in each.lines if line.get("received", {}).get("type") == "broadcast"
            ]
            assert [message["event"] for message in broadcasts] == ["whisper"] * 3 + ["end"]
        assert await stage.inbox() == []


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_client_stops_if_its_token_is_wrong(stage: ClientFixture, installed: Path, client: str) -> None:
    async with cable(stage, installed, client, token=token(sub="bob")) as alice:
        if client == "rails":
            assert await alice.until(lambda line: "disconnected" in line) == {"disconnected": True, "again": False}
        else:
            assert await alice.until(lambda line: "closed" in line) == {"closed": "unauthorized"}


@pytest.mark.parametrize("client", ["plain", "extended"])
async def test_the_token_refresher_runs_for_an_expired_token(
    stage: ClientFixture, installed: Path, client: str
) -> None:
    async with cable(stage, installed, client, token=token(life_s=-60)) as alice:
        assert await alice.until(lambda line: "closed" in line) == {"closed": "token_expired"}
        await alice.connected()


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_client_gets_a_new_token_when_one_expires(stage: ClientFixture, installed: Path, client: str) -> None:
    async with cable(stage, installed, client, first_life_s=2) as alice:
        await alice.connected()
        await alice.event(await stage.publish())
        await alice.until(lambda line: "disconnected" in line)
        await stage.publish(2)
        await alice.event(3)
        assert alice.ids == [1, 2, 3]
