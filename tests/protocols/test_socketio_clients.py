"""Socket.IO with its client from npm, over a network with faults: both transports, and the upgrade."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from testing.browser import browser
from testing.clients.application import EventApplication
from testing.clients.faults import cut, drain, kill, replaced
from testing.clients.fixture import ClientFixture, serving
from testing.clients.javascript import install_locked
from testing.faults.proxy import Filter, Link
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.relay.harness import running, token

SOURCE: Final = Path(__file__).parent / "socketio"
BASE_PATH: Final = "/urt-alice-1234"
DEFAULT: Final[list[str]] = []
"""Both transports: long polling first, then the upgrade to a WebSocket."""
WEBSOCKET: Final = ["websocket"]
POLLING: Final = ["polling"]
TRANSPORTS: Final = (DEFAULT, WEBSOCKET, POLLING)
VALUES: Final = ("0", "false", "null", '""', "[]", "{}", '{"a": {"b": [1, "é", null]}}', "1.50", '"44"', '"\\u0001\\""')
RESERVED: Final = ("connect", "connect_error", "disconnect", "disconnecting", "newListener", "userrealtime:reset")

transports = pytest.mark.parametrize("transports", TRANSPORTS, ids=["default", "websocket", "polling"])
default_and_polling = pytest.mark.parametrize("transports", [DEFAULT, POLLING], ids=["default", "polling"])
each_transport_of_a_browser = pytest.mark.parametrize(
    "transports", [["polling", "websocket"], POLLING], ids=["default", "polling"]
)
PAGE: Final = """
    (async () => {
      const { io } = await import("/dist/socket.io.esm.min.js");
      window.numbers = [];
      window.recovered = [];
      window.errors = [];
      const token = async () => (await fetch("/token")).text();
      window.socket = io(%r, {
        path: %r,
        transports: %s,
        auth: async (callback) => callback({ token: await token() }),
      });
      socket.on("connect", () => recovered.push(socket.recovered));
      socket.on("connect_error", (error) => errors.push(error.message));
      socket.on("test.event", ({ n }) => numbers.push(n));
    })()
"""
each_transport = pytest.mark.parametrize("transports", [WEBSOCKET, POLLING], ids=["websocket", "polling"])


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script and the packages that it needs, outside of the source tree."""
    return install_locked(SOURCE, tmp_path_factory.mktemp("socketio") / "application")


@asynccontextmanager
async def staged(server: LocalPostgres, **variables: str) -> AsyncIterator[ClientFixture]:
    async with ClientFixture(server, PROTOCOLS="socketio", BASE_PATH=BASE_PATH, **variables) as stage:
        yield stage


@pytest.fixture
async def stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    async with staged(postgres_server) as stage:
        yield stage


class Client(EventApplication):
    """A process with a client."""

    def do(self, *command: Any) -> None:
        """Do what a command requests."""
        self.write(command)

    async def ask(self, *command: Any) -> Any:
        """Send a command, and return the answer of the server."""
        self.do(*command)
        return (await self.has("answer"))["answer"]

    @property
    def recovered(self) -> list[bool]:
        """Whether the client has recovered, for each of its connections."""
        return [line["recovered"] for line in self.lines if "recovered" in line]


@asynccontextmanager
async def application(
    stage: ClientFixture, folder: Path, transports: list[str] = DEFAULT, *, port: int | None = None, **options: Any
) -> AsyncIterator[Client]:
    async with serving(stage) as url:
        given = {
            "url": f"http://127.0.0.1:{port or stage.link.port}",
            "path": f"{BASE_PATH}/socket.io",
            "tokens": f"{url}/token",
            "io": {"transports": transports} if transports else {},
            **options,
        }
        async with Client.running(folder, "socketio.mjs", given) as alice:
            yield alice


async def test_the_default_transports_are_polling_and_then_a_websocket(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed) as alice:
        publishing = asyncio.create_task(_publish_until_cancelled(stage))
        await alice.has("upgraded")
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        last = await stage.publish()
        await alice.event(last)
        assert alice.numbers == list(range(alice.numbers[0], last + 1))
        [connected] = [line for line in alice.lines if "connected" in line]
        assert not connected["recovered"]


async def _publish_until_cancelled(stage: ClientFixture) -> None:
    while True:
        await stage.publish()
        await asyncio.sleep(0.01)


@transports
async def test_a_client_recovers_each_event_once(stage: ClientFixture, installed: Path, transports: list[str]) -> None:
    async with application(stage, installed, transports) as alice:
        await alice.has("connected")
        last = 0
        for disturb in (kill, cut, drain, kill):
            disturbing = asyncio.create_task(disturb(stage))  # at first, the client has received no event yet
            await stage.publish(3)
            await disturbing
            last = await stage.publish(3)
            await alice.event(last)
        assert alice.numbers == list(range(1, last + 1))
        assert alice.recovered == [False, *[True] * (len(alice.recovered) - 1)]
        assert len(alice.recovered) >= 4
        assert all(line["active"] for line in alice.lines if "refused" in line)
        assert not any(event["event"] == "userrealtime:reset" for event in alice.events)


async def test_a_rolling_restart_disconnects_no_client_for_good(stage: ClientFixture, installed: Path) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(application(stage, installed, each)) for each in TRANSPORTS]
        for each in clients:
            await each.has("connected")
        async with replaced(stage, PROTOCOLS="socketio", BASE_PATH=BASE_PATH) as last:
            for each in clients:
                await each.event(last)
                assert each.numbers == list(range(1, last + 1))
                assert all(line["active"] for line in each.lines if "disconnected" in line)
                assert each.recovered[1:] == [True] * len(each.recovered[1:])


@transports
async def test_a_connection_that_breaks_within_a_batch(
    stage: ClientFixture, installed: Path, transports: list[str]
) -> None:
    limit = 10_000

    def breaking() -> Filter:
        """Return a filter that passes a part of a batch, and then breaks the connections; each time, a larger one."""
        rest = limit

        def passing(data: bytes) -> bytes:
            nonlocal limit, rest
            passed, rest = data[:rest], rest - len(data[:rest])
            if passed and not rest:
                limit *= 2  # a response to a poll must arrive whole
                asyncio.get_running_loop().call_later(0.1, link.cut)
            return passed

        return passing

    async with (
        Link(stage.relay.port, breaking) as link,
        application(stage, installed, transports, port=link.port) as alice,
    ):
        await alice.has("connected")
        last = await stage.publish(500)
        await alice.event(last)
        assert True in alice.recovered
        assert alice.numbers == list(range(1, last + 1))


@default_and_polling
@pytest.mark.parametrize("reason", ["too-old", "epoch"])
async def test_a_client_learns_of_a_gap(
    stage: ClientFixture, installed: Path, transports: list[str], reason: str
) -> None:
    async with application(stage, installed, transports) as alice:
        await alice.has("connected")
        await alice.event(await stage.publish())
        await stage.refuse(True)
        await alice.has("disconnected")  # a client that polls notices it with its next request
        await stage.publish(3)
        await (stage.replace() if reason == "epoch" else stage.forget())
        await stage.refuse(False)
        reset = await alice.until(lambda line: line.get("event") == "userrealtime:reset")
        assert (reset["data"]["reason"], reset["data"]["cursor"]) == (reason, 4)
        assert alice.recovered == [False, False]
        await stage.restart(grace_s=0)
        await alice.event(await stage.publish())
        assert alice.numbers == [1, 5]
        assert alice.recovered == [False, False, True]


async def test_an_application_continues_at_a_position_of_its_own(stage: ClientFixture, installed: Path) -> None:
    await stage.publish(3)
    position = (await stage.snapshot())["position"]
    await stage.publish(2)
    async with application(stage, installed, auth={"offset": position}, saved=True) as alice:
        await alice.event(5)
        await stage.restart(grace_s=0)
        await alice.event(await stage.publish())
        assert alice.numbers == [4, 5, 6]
        assert alice.events[0]["position"] == position.replace("3:", "4:", 1)


@default_and_polling
async def test_another_pod_does_not_know_the_session_and_recovers_the_client(
    stage: ClientFixture, installed: Path, transports: list[str]
) -> None:
    database = stage.server.url(stage.database)
    async with (
        running(database, PROTOCOLS="socketio", BASE_PATH=BASE_PATH) as other,
        application(stage, installed, transports) as alice,
    ):
        await alice.has("connected")
        await alice.event(await stage.publish())
        stage.link.target = other.ws_port
        stage.link.cut()
        last = await stage.publish(2)
        await alice.event(last)
        assert alice.numbers == [1, 2, 3]
        assert alice.recovered == [False, True]


@default_and_polling
async def test_data_of_each_type_and_reserved_names(
    stage: ClientFixture, installed: Path, transports: list[str]
) -> None:
    async with application(stage, installed, transports) as alice:
        await alice.has("connected")
        values = await stage.publish_values([f"'{value}'" for value in VALUES])
        async with stage._connected() as connection:
            for event in RESERVED:
                await connection.execute("select userrealtime.publish('alice', $1, '{}')", event)
        await stage.publish_values(["to_jsonb(repeat('x', 900000))"])
        large = await alice.until(lambda line: line.get("data") == "x" * 900_000)
        assert large["position"].startswith(f"{len(VALUES) + len(RESERVED) + 1}:")
        events = alice.events
        assert [event["data"] for event in events[: len(VALUES)]] == [json.loads(value) for value in values]
        names = [event["event"] for event in events[len(VALUES) : -1]]
        assert names == [f"userrealtime:event:{name}" for name in RESERVED]
        assert alice.recovered == [False]


@default_and_polling
async def test_messages_are_stored_and_acknowledged(
    stage: ClientFixture, installed: Path, transports: list[str]
) -> None:
    async with application(stage, installed, transports) as alice:
        await alice.has("connected")
        answer = await alice.ask("ask", "note", {"text": "é"}, "r1")
        assert await alice.ask("ask", "note", {"text": "é"}, "r1") == answer  # stored once
        other = await alice.ask("ask", "empty")
        alice.do("emit", "silent", 1)
        refused = await alice.ask("ask", "note", 1, 2)
        assert refused["error"] == "invalid-publish"
        refused = await alice.ask("binary", "note")
        assert refused["error"] == "invalid-publish"
        assert "base64" in refused["message"]
        alice.do("emit", "x" * 300)
        error = await alice.until(lambda line: line.get("event") == "userrealtime:error")
        assert error["data"]["error"] == "invalid-publish"
        rows = await stage.inbox()
        assert [(row["event"], row["data"]) for row in rows] == [("note", {"text": "é"}), ("empty", {}), ("silent", 1)]
        assert [rows[0]["id"], rows[1]["id"]] == [answer["id"], other["id"]]
        assert alice.recovered == [False]  # the connection continues after mistakes


async def test_messages_that_wait_for_a_connection_are_stored_once(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed) as alice:
        await alice.has("connected")
        await stage.refuse(True)
        await alice.has("disconnected")
        for number in range(5):
            alice.do("emit", "note", number)
        await stage.refuse(False)
        await alice.has("connected")
        answer = await alice.ask("ask", "last")
        rows = await stage.inbox()
        assert [row["data"] for row in rows] == [0, 1, 2, 3, 4, {}]
        assert rows[-1]["id"] == answer["id"]


@default_and_polling
async def test_broadcasts_arrive_and_do_not_move_the_position(
    stage: ClientFixture, installed: Path, transports: list[str]
) -> None:
    async with (
        application(stage, installed, transports) as alice,
        application(stage, installed, transports) as other,
    ):
        for each in (alice, other):
            await each.has("connected")
        await alice.event(await stage.publish())
        await stage.broadcast("x", {"a": 1})
        await alice.until(lambda line: line.get("data") == {"a": 1})
        assert [event["position"] for event in alice.events[-2:]] == [None, None]
        assert await other.ask("ask", "userrealtime:broadcast", "moved", {"x": 1}) == {}
        moved = await alice.until(lambda line: line.get("event") == "moved")
        assert moved["data"] == {"x": 1}
        await stage.restart(grace_s=0)
        last = await stage.publish()
        await alice.event(last)
        assert alice.numbers == [1, 2]
        assert alice.recovered == [False, True]
        await other.event(last)
        assert not any(event["event"] == "moved" for event in other.events)


@default_and_polling
async def test_a_wrong_token_is_refused_and_another_one_accepted(
    stage: ClientFixture, installed: Path, transports: list[str]
) -> None:
    async with application(stage, installed, transports, token=token(sub="bob")) as alice:
        for bad in (token(life_s=-60), "", "nonsense"):
            refused = await alice.has("refused")
            assert refused["refused"].startswith("Unauthorized: ")
            assert refused["data"] == {"code": "unauthorized"}
            assert not refused["active"]
            alice.do("token", bad)
        refused = await alice.has("refused")
        alice.do("token", token())
        await alice.has("connected")
        await alice.event(await stage.publish())


async def test_the_path_in_the_url_is_explained(stage: ClientFixture, installed: Path) -> None:
    url = f"http://127.0.0.1:{stage.link.port}/urt-alice"
    async with application(stage, installed, url=url) as alice:
        refused = await alice.has("refused")
        assert "path" in refused["refused"]
        assert not refused["active"]


@default_and_polling
async def test_a_client_asks_for_a_token_when_one_expires(
    stage: ClientFixture, installed: Path, transports: list[str]
) -> None:
    async with application(stage, installed, transports, first_life_s=3) as alice:
        await alice.has("connected")
        await alice.event(await stage.publish())
        disconnected = await alice.has("disconnected")
        assert disconnected["active"]
        await stage.publish(2)
        await alice.event(3)
        assert alice.numbers == [1, 2, 3]
        assert alice.recovered == [False, True]


async def test_an_expired_token_that_the_application_keeps_is_refused(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed, token=token(life_s=3)) as alice:
        await alice.has("connected")
        refused = await alice.has("refused")
        assert refused["refused"] == "Unauthorized: the token has expired"


@default_and_polling
async def test_a_token_is_renewed_without_a_reconnect(
    stage: ClientFixture, installed: Path, transports: list[str]
) -> None:
    async with application(stage, installed, transports, first_life_s=4) as alice:
        await alice.has("connected")
        assert (await alice.ask("renew"))["expiresIn"] > 60
        await asyncio.sleep(5)
        await alice.event(await stage.publish())
        assert alice.recovered == [False]
        assert not any("disconnected" in line for line in alice.lines)


@each_transport
async def test_a_silent_relay_is_detected_and_pings_keep_a_connection(
    postgres_server: LocalPostgres, installed: Path, transports: list[str]
) -> None:
    # The client waits 20 s longer than the ping interval.
    async with (
        staged(postgres_server, PING_INTERVAL="1") as stage,
        application(stage, installed, transports) as alice,
    ):
        await alice.has("connected")
        for _ in range(3):
            await alice.has("ping")
        await alice.event(await stage.publish())
        assert alice.recovered == [False]
        await alice.has("ping")
        await asyncio.sleep(0.4)  # the client polls again
        await stage.strand()
        last = await stage.publish()
        await alice.event(last)
        assert alice.numbers == [1, 2]
        reasons = [line["disconnected"] for line in alice.lines if "disconnected" in line]
        assert reasons[0] in ("ping timeout", "transport close", "transport error")
        assert alice.recovered == [False, True]


async def test_a_message_that_is_repeated_is_stored_once_with_a_ref(stage: ClientFixture, installed: Path) -> None:
    options = {"transports": WEBSOCKET, "retries": 3, "ackTimeout": 1000}
    async with application(stage, installed, io=options) as alice:
        await alice.has("connected")
        stage.link.hold(up=False, down=True)  # the acknowledgements do not arrive
        alice.do("emit", "note", 1, "r")
        async with asyncio.timeout(PATIENCE_S):
            while len(await stage.inbox()) < 1:
                await asyncio.sleep(0.1)
        await asyncio.sleep(2.5)
        stage.link.release()
        # The client sends the next message when one is acknowledged.
        alice.do("emit", "last")
        async with asyncio.timeout(PATIENCE_S):
            while (rows := await stage.inbox())[-1]["event"] != "last":
                await asyncio.sleep(0.1)
        assert [row["event"] for row in rows] == ["note", "last"]


@pytest.mark.usefixtures("chromium_is_there")
@each_transport_of_a_browser
async def test_a_page_of_another_origin_polls_and_recovers(
    stage: ClientFixture, installed: Path, transports: list[str]
) -> None:
    dist = installed / "node_modules" / "socket.io-client" / "dist"
    async with serving(stage, dist) as url, browser() as chromium, chromium.page() as page:
        await page.goto(f"{url}/token")
        await page.evaluate(PAGE % (stage.url, f"{BASE_PATH}/socket.io", json.dumps(transports)))
        await page.wait_for("recovered.length === 1")
        if len(transports) > 1:
            await page.wait_for("socket.io.engine.transport.name === 'websocket'")
        await stage.publish(3)
        await page.wait_for("numbers.length === 3")
        await stage.restart(grace_s=0)
        await stage.publish(3)
        await page.wait_for("numbers.length === 6")
        assert await page.evaluate("numbers") == [1, 2, 3, 4, 5, 6]
        assert await page.evaluate("recovered") == [False, True]
        answer = await page.evaluate("socket.timeout(20000).emitWithAck('note', {text: 'é'})")
        assert answer == {"id": (await stage.inbox())[0]["id"]}


@pytest.mark.usefixtures("chromium_is_there")
async def test_a_page_of_an_origin_that_is_not_allowed_does_not_connect(
    postgres_server: LocalPostgres, installed: Path
) -> None:
    dist = installed / "node_modules" / "socket.io-client" / "dist"
    async with (
        staged(postgres_server, ALLOWED_ORIGINS="https://app.example.com") as stage,
        serving(stage, dist) as url,
        browser() as chromium,
        chromium.page() as page,
    ):
        await page.goto(f"{url}/token")
        await page.evaluate(PAGE % (stage.url, f"{BASE_PATH}/socket.io", json.dumps(["polling", "websocket"])))
        await page.wait_for("errors.length >= 2")
        assert await page.evaluate("recovered") == []


async def test_a_client_leaves_and_comes_back(stage: ClientFixture, installed: Path) -> None:
    async with application(stage, installed) as alice:
        await alice.has("connected")
        await alice.event(await stage.publish())
        alice.do("disconnect")
        await alice.has("disconnected")
        await stage.publish(2)
        alice.do("connect")
        await alice.event(3)
        assert alice.numbers == [1, 2, 3]
        assert alice.recovered == [False, True]
