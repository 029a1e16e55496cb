"""The read side of Durable Streams: over real sockets, with the client from npm, and the protocol's own tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testing.clients.fixture import ClientFixture, serving
from testing.clients.javascript import install_locked, program
from testing.database import Database
from testing.faults.proxy import Link
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.relay.durable_streams import DurableStreamsServer
from testing.relay.harness import NEVER, USER, config, metric, publish, running, token, until
from testing.relay.http_client import Answer, exchange, request
from userrealtime_relay.protocols.durable_streams import (
    BadRead,
    Position,
    Read,
    interval,
    next_cursor,
)
from userrealtime_relay.server import Relay

SOURCE: Final = Path(__file__).parent / "durable_streams"
STREAM: Final = "/streams/log"
ENABLED: Final[dict[str, Any]] = {"PROTOCOLS": "durable-streams", "POLL_INTERVAL": NEVER}
# No program listens there.
NO_DATABASE: Final = "postgresql://nobody@127.0.0.1:1/none"
CONFORMANCE_S: Final = 400
RESETS: Final = [("too-old", 1, None), ("ahead", 6, None), ("epoch", 4, "other")]

EPOCHS = st.text(min_size=1, max_size=40).filter(lambda text: "\x00" not in text)


async def read(relay: Relay, offset: object = None, *, path: str = STREAM, **parameters: object) -> Answer:
    """Return the response to a read with a valid token."""
    if offset is not None:
        parameters = {"offset": offset, **parameters}
    headers: dict[str, str] = parameters.pop("headers", {})  # type: ignore[assignment]
    query = "&".join(f"{name.replace('_', '-')}={quote(str(value))}" for name, value in parameters.items())
    return await request(relay, f"{path}?{query}" if query else path, headers=headers)


def ids(answer: Answer) -> list[int]:
    return [event["id"] for event in answer.json]


def next_offset(answer: Answer) -> str:
    return answer.headers["stream-next-offset"]


async def epoch_of(connection: asyncpg.Connection) -> str:
    return str(await connection.fetchval("select epoch from userrealtime.log where user_id = $1", USER))


@dataclass
class Feed:
    """Server-Sent Events of the protocol, being read."""

    answer: Answer
    chunk: Any
    _rest: bytes = field(default=b"", repr=False)

    async def event(self) -> tuple[str, Any] | None:
        """Return the name and the value of the next event, None at the regular end."""
        while True:
            while b"\n\n" not in self._rest:
                chunk = await self.chunk()
                if not chunk:
                    assert not self._rest
                    return None
                self._rest += chunk
            block, _, self._rest = self._rest.partition(b"\n\n")
            if block != b":":
                first, second = block.decode().split("\n")
                return first.removeprefix("event: "), json.loads(second.removeprefix("data:"))

    async def control(self) -> dict[str, Any]:
        event = await self.event()
        assert event is not None
        assert event[0] == "control", event
        control: dict[str, Any] = event[1]
        return control

    async def ids(self, last: int) -> list[int]:
        """Return the ids of the events up to `last`. Each batch is followed by its position."""
        received: list[int] = []
        while not received or received[-1] < last:
            event = await self.event()
            assert event is not None
            assert event[0] == "data", event
            received += [message["id"] for message in event[1]]
            assert Position.parse((await self.control())["streamNextOffset"]).cursor == received[-1]  # type: ignore[union-attr]
        return received


@asynccontextmanager
async def following(relay: Relay, offset: str, bearer: str = "", *, cursor: str = "") -> AsyncIterator[Feed]:
    path = f"{STREAM}?offset={offset}&live=sse" + (f"&cursor={cursor}" if cursor else "")
    async with exchange(relay.ws_port, path, bearer, "GET", {}, b"") as opened:
        assert opened.answer.status == 200, opened.answer
        yield Feed(opened.answer, opened.chunk)


@given(st.integers(0, 2**63 - 1), st.one_of(st.none(), EPOCHS))
def test_an_offset_is_a_position(cursor: int, epoch: str | None) -> None:
    offset = Position(cursor, epoch).offset
    assert Position.parse(offset) == Position(cursor, epoch)
    assert re.fullmatch(r"[!-~]+", offset)
    assert not set(offset) & set(",&=?/")


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), EPOCHS)
def test_offsets_of_a_log_sort_as_strings(first: int, second: int, epoch: str) -> None:
    before, after = (Position(cursor, epoch).offset for cursor in (first, second))
    assert (before < after, before == after) == (first < second, first == second)
    assert Position(first, None).offset <= Position(max(first, second), epoch).offset


@pytest.mark.parametrize(
    "offset", ["", "1", "-2", "0,1", "0 1", "0" * 20, "0" * 19 + "_", "x:y", "0" * 19 + "_a/b", "5:"]
)
def test_other_offsets_are_rejected(offset: str) -> None:
    with pytest.raises(BadRead, match="offset must be"):
        Read.parse("GET", f"offset={quote(offset)}")


def test_the_applications_position_is_an_offset() -> None:
    assert Position.parse("42:5f0c") == Position(42, "5f0c")


@given(st.integers(-1, 10**15), st.floats(1.73e9, 5e9))
def test_a_cursor_never_goes_back(given_cursor: int, now: float) -> None:
    cursor = next_cursor(given_cursor, now)
    assert cursor > given_cursor
    assert cursor >= interval(now)


@pytest.mark.parametrize(
    ("query", "advice"),
    [
        ("live=true&offset=-1", "live must be"),
        ("live=sse", "needs an offset"),
        ("live=long-poll", "needs an offset"),
        ("offset=", "offset must be"),
        ("offset=-1&offset=now", "more than one offset"),
        ("offset=-1&live=long-poll&timeout=61", "timeout must be"),
        ("&".join(["a=b"] * 40), "too many parameters"),
    ],
)
async def test_a_bad_read_gets_advice(migrated: Database, query: str, advice: str) -> None:
    async with running(migrated.url, **ENABLED) as relay:
        answer = await request(relay, f"{STREAM}?{query}")
        assert (answer.status, advice in answer.json["error"]) == (400, True)
        # The token comes first.
        assert (await request(relay, f"{STREAM}?{query}", None)).status == 401


async def test_a_catch_up_returns_all_events_in_pieces(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 150, size=2000)
    async with running(migrated.url, **ENABLED, RING_EVENTS="8") as relay:
        received: list[int] = []
        offsets: list[str] = []
        answer = await read(relay)
        while True:
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
            assert answer.headers["cache-control"] == "no-store"
            assert len(answer.body) < 80_000
            received += ids(answer)
            offsets.append(next_offset(answer))
            if "stream-up-to-date" in answer.headers:
                break
            answer = await read(relay, offsets[-1])
        assert received == list(range(1, 151))
        assert len(offsets) > 3
        assert offsets == sorted(set(offsets))
        assert offsets[-1] == f"{150:019}_{await epoch_of(connection)}"
        again = await read(relay, offsets[-1])
        assert (again.status, again.body, next_offset(again)) == (200, b"[]", offsets[-1])
        assert again.headers["stream-up-to-date"] == "true"
        await until(lambda: not relay.clients)


async def test_the_messages_are_those_of_the_websocket(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection)
    async with running(migrated.url, **ENABLED) as relay:
        (event,) = (await read(relay, "-1")).json
        assert list(event) == ["type", "id", "event", "at", "data"]
        polled = (await request(relay, "/poll?cursor=0")).json["events"]
        assert [event] == polled


async def test_a_catch_up_has_what_was_committed_before(migrated: Database, connection: asyncpg.Connection) -> None:
    # The relay gets no signal, so that it knows of the events only by reading the log.
    async with running(migrated.url, **{**ENABLED, "SIGNAL": "poll"}) as relay:
        offset = next_offset(await read(relay, "now"))
        for number in range(1, 4):
            await publish(connection)
            head = await request(relay, STREAM, method="HEAD")
            assert (head.status, head.headers["content-type"], head.body) == (200, "application/json", b"")
            assert Position.parse(next_offset(head)).cursor == number  # type: ignore[union-attr]
            answer = await read(relay, offset)
            assert (ids(answer), answer.headers["stream-up-to-date"]) == ([number], "true")
            offset = next_offset(answer)
            assert next_offset(await read(relay, "now")) == offset


async def test_the_applications_position_begins_a_read(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 2)
    position = await connection.fetchval("select userrealtime.position($1)", USER)
    await publish(connection, 2)
    async with running(migrated.url, **ENABLED) as relay:
        assert ids(await read(relay, position)) == [3, 4]


async def test_the_beginning_is_the_oldest_event_that_is_kept(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await publish(connection, 5)
    async with running(migrated.url, **ENABLED) as relay:
        # The relay has read the state of the log before.
        await connection.execute("delete from userrealtime.event where id <= 2")
        for live in ({}, {"live": "long-poll"}):
            assert ids(await read(relay, "-1", **live)) == [3, 4, 5]
        async with following(relay, "-1") as feed:
            assert await feed.ids(5) == [3, 4, 5]


@pytest.mark.parametrize("live", [{}, {"live": "long-poll"}, {"live": "sse"}], ids=str)
@pytest.mark.parametrize(("reason", "number", "epoch"), RESETS)
async def test_an_offset_that_cannot_be_served_gets_410(
    migrated: Database,
    connection: asyncpg.Connection,
    live: dict[str, str],
    reason: str,
    number: int,
    epoch: str | None,
) -> None:
    await publish(connection, 5)
    await connection.execute("delete from userrealtime.event where id <= 2")
    offset = Position(number, epoch or await epoch_of(connection)).offset
    async with running(migrated.url, **ENABLED) as relay:
        answer = await read(relay, offset, **live)
        assert (answer.status, answer.json["reset"]) == (410, reason)
        assert "load the state again" in answer.json["error"]
        continued = await read(relay, next_offset(answer))
        assert (continued.status, continued.body) == (200, b"[]")
        assert await metric(relay, f'starts_total{{outcome="{reason}"}}') >= 1


async def test_a_log_without_an_epoch(postgres: Database, migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url, **ENABLED) as relay:
        first = await read(relay)
        assert (first.status, first.body) == (200, b"[]")
        await publish(connection)
        answer = await read(relay, next_offset(first))
        assert ids(answer) == [1]
        assert next_offset(first) < next_offset(answer)


async def test_an_etag_saves_the_repetition(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 2)
    async with running(migrated.url, **ENABLED) as relay:
        answer = await read(relay)
        tag = answer.headers["etag"]
        same = await read(relay, headers={"If-None-Match": f'"other", W/{tag}'})
        assert (same.status, same.body, next_offset(same)) == (304, b"", next_offset(answer))
        await publish(connection)
        changed = await read(relay, headers={"If-None-Match": tag})
        assert (changed.status, ids(changed), changed.headers["etag"] != tag) == (200, [1, 2, 3], True)
        assert "etag" not in (await read(relay, "now")).headers


async def test_a_long_poll_waits_for_an_event(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url, **ENABLED) as relay:
        waiting = asyncio.create_task(read(relay, "now", live="long-poll"))
        await until(lambda: relay.clients.connected == 1)
        await publish(connection)
        answer = await waiting
        assert (answer.status, ids(answer), answer.headers["stream-up-to-date"]) == (200, [1], "true")
        cursor = answer.headers["stream-cursor"]
        none = await read(relay, next_offset(answer), live="long-poll", timeout="0.1", cursor=cursor)
        assert (none.status, none.body, next_offset(none)) == (204, b"", next_offset(answer))
        assert none.headers["stream-up-to-date"] == "true"
        assert int(none.headers["stream-cursor"]) > int(cursor)
        await until(lambda: not relay.clients)


async def test_a_long_poll_ends_with_its_token(migrated: Database) -> None:
    async with running(migrated.url, **ENABLED, TOKEN_LEEWAY="0") as relay:
        path = f"{STREAM}?offset=now&live=long-poll"
        answer = await request(relay, path, token(life_s=2))
        # The client repeats the request with a new token, where 401 would end its stream.
        assert (answer.status, answer.headers["connection"]) == (204, "close")
        assert (await request(relay, path, token(life_s=-1))).status == 401


async def test_a_stream_follows_the_log(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 100, size=2000)
    async with running(migrated.url, **ENABLED, RING_EVENTS="8", PING_INTERVAL="0.1") as relay:
        async with following(relay, "-1") as feed, following(relay, "now", cursor=str(10**12)) as late:
            assert feed.answer.headers["content-type"] == "text/event-stream"
            assert "no-cache" in feed.answer.headers["cache-control"]
            control = await late.control()
            assert control["upToDate"] is True
            assert int(control["streamCursor"]) > 10**12
            assert await feed.ids(100) == list(range(1, 101))
            for number in (101, 102):
                await publish(connection)
                assert (await feed.ids(number), await late.ids(number)) == ([number], [number])
            await asyncio.sleep(0.3)  # for comments
        async with following(relay, control["streamNextOffset"]) as feed:
            assert await feed.ids(102) == [101, 102]
        await until(lambda: not relay.clients)


async def test_a_stream_reports_when_it_is_up_to_date(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 100, size=2000)
    async with running(migrated.url, **ENABLED) as relay, following(relay, "-1") as feed:
        controls: list[dict[str, Any]] = []
        while not controls or "upToDate" not in controls[-1]:
            event = await feed.event()
            assert event is not None
            assert event[0] == "data"
            controls.append(await feed.control())
        assert len(controls) > 1
        assert Position.parse(controls[-1]["streamNextOffset"]) == Position(100, await epoch_of(connection))


@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_a_live_read_ends_when_the_log_is_replaced(
    migrated: Database, connection: asyncpg.Connection, live: str
) -> None:
    await publish(connection, 5)
    async with running(migrated.url, **{**ENABLED, "POLL_INTERVAL": "0.2"}) as relay:
        offset = next_offset(await read(relay, "now"))
        async with contextlib.AsyncExitStack() as stack:
            if live == "sse":
                feed = await stack.enter_async_context(following(relay, offset))
                await feed.control()
            else:
                waiting = asyncio.create_task(read(relay, offset, live=live))
                await until(lambda: relay.clients.connected == 1)
            await connection.execute("update userrealtime.log set epoch = 'other'")
            if live == "sse":
                assert await feed.event() is None
            else:
                assert (await waiting).status == 410
        answer = await read(relay, offset, live=live)
        assert (answer.status, answer.json["reset"], next_offset(answer)) == (410, "epoch", f"{5:019}_other")


async def test_a_stream_ends_with_its_token_and_with_the_relay(migrated: Database) -> None:
    async with running(migrated.url, **ENABLED, TOKEN_LEEWAY="0", DRAIN_TIMEOUT="0.1") as relay:
        async with following(relay, "now", token(life_s=2)) as feed:
            await feed.control()
            assert await feed.event() is None
        waiting = asyncio.create_task(read(relay, "now", live="long-poll"))
        async with following(relay, "now") as feed:
            await feed.control()
            await until(lambda: relay.clients.connected == 2)
            await relay.drain()
            assert await feed.event() is None
        answer = await waiting
        assert (answer.status, answer.headers["connection"]) == (204, "close")
        late = await read(relay, "now")
        assert (late.status, "retry-after" in late.headers) == (503, True)


@pytest.mark.parametrize("path", [STREAM, "/streams/other"])
@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
async def test_writes_get_advice(migrated: Database, path: str, method: str) -> None:
    async with running(migrated.url, **ENABLED, BASE_PATH="/alice") as relay:
        for base in ("", "/alice"):
            answer = await request(relay, base + path, None, method=method, body=b"[1]")
            if path == STREAM:
                assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
                assert "the stream is read only" in answer.json["error"]
            else:
                assert (answer.status, "one stream" in answer.json["error"]) == (404, True)


async def test_what_all_responses_have(migrated: Database) -> None:
    async with running(migrated.url, **ENABLED) as relay:
        answers = [
            await read(relay),
            await read(relay, "now", live="long-poll", timeout="0"),
            await request(relay, STREAM, None),
            await request(relay, STREAM, method="HEAD"),
            await request(relay, STREAM, method="PUT"),
            await request(relay, STREAM, headers={"Content-Length": "1"}),
            await request(relay, "/streams/none"),
            await read(relay, f"{0:019}_other"),
        ]
        assert [answer.status for answer in answers] == [200, 204, 401, 200, 405, 400, 404, 410]
        for answer in answers:
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-request-id"]
        async with following(relay, "now") as feed:
            assert feed.answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("bearer", [None, "nonsense", token(sub="bob"), token(life_s=-60)])
async def test_a_read_needs_a_token(bearer: str | None, method: str) -> None:
    # There is no database: a request without a valid token causes no query.
    async with Relay(config(NO_DATABASE, **ENABLED)) as relay:
        answer = await request(relay, f"{STREAM}?offset=-1", bearer, method=method)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_pages_of_allowed_origins_may_read(migrated: Database) -> None:
    page = {"Origin": "https://app.example.com"}
    async with running(migrated.url, **ENABLED, ALLOWED_ORIGINS=page["Origin"]) as relay:
        asked = {"Access-Control-Request-Headers": "authorization,if-none-match"}
        for method in ("GET", "HEAD"):
            headers = {**page, **asked, "Access-Control-Request-Method": method}
            assert (await request(relay, STREAM, None, method="OPTIONS", headers=headers)).status == 200
        answer = await read(relay, headers=page)
        exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert set(answer.headers) & {"etag", "stream-next-offset", "stream-up-to-date"} <= set(exposed)
        assert {"etag", "stream-cursor", "stream-next-offset", "stream-up-to-date"} <= set(exposed)


async def test_reads_count_as_connections(migrated: Database) -> None:
    async with running(migrated.url, **ENABLED, MAX_CONNECTIONS="1") as relay, following(relay, "now") as feed:
        await feed.control()
        for live in ({}, {"live": "long-poll"}, {"live": "sse"}):
            answer = await read(relay, "now", **live)
            assert (answer.status, answer.json["error"]) == (503, "Too many connections")


async def test_without_the_database(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 2)
    offset = Position(2, await epoch_of(connection)).offset
    async with Link(migrated.server.port) as link:
        url = migrated.url.replace(f":{migrated.server.port}/", f":{link.port}/")
        async with running(url, **ENABLED) as relay:
            link.refusing = True
            link.cut()
            await until(lambda: relay.not_ready_reason is not None)
            assert (await read(relay, offset, live="long-poll", timeout="0.1")).status == 204
            # A response without live reports whether it is complete, so it waits for the log.
            waiting = asyncio.create_task(read(relay, offset))
            await until(lambda: relay.clients.connected == 1)
            await asyncio.sleep(0.3)
            assert not waiting.done()
            link.refusing = False
            assert (await waiting).headers["stream-up-to-date"] == "true"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts and the packages that they need, outside of the source tree."""
    return install_locked(SOURCE, tmp_path_factory.mktemp("durable") / "application")


@pytest.fixture
async def stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    async with ClientFixture(postgres_server, PROTOCOLS="durable-streams") as stage:
        yield stage


class Reader:
    """The client from npm in a process of its own. `events` and `failures` are what the application has received."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.offset = Position(0, None).offset

    async def line(self) -> dict[str, Any]:
        """Process and return the next line."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            text = await self._process.stdout.readline()
        assert text, (await self._process.stderr.read()).decode()  # type: ignore[union-attr]
        line: dict[str, Any] = json.loads(text)
        if "id" in line:
            self.events.append(line)
        elif "offset" in line:
            self.offset = line["offset"]
        elif "failed" in line:
            self.failures.append(line)
        return line

    async def until(self, number: int) -> None:
        """Read until the event with this number, and the offset after it, have arrived."""
        while not self.events or self.events[-1]["id"] < number or Position.parse(self.offset).cursor < number:  # type: ignore[union-attr]
            await self.line()

    async def up_to_date(self) -> None:
        while "upToDate" not in await self.line():
            pass


@asynccontextmanager
async def reading(
    stage: ClientFixture, folder: Path, live: str, offset: str = "-1", *, life_s: float = 3600
) -> AsyncIterator[Reader]:
    async with serving(stage) as url:
        process = await asyncio.create_subprocess_exec(
            program("node", "nodejs"),
            "reader.mjs",
            f"{stage.url}{STREAM}",
            f"{url}/token?life_s={life_s}",
            live,
            offset,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=1 << 20,
        )
        try:
            yield Reader(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_the_client_gets_each_event_once(stage: ClientFixture, installed: Path, live: str) -> None:
    await stage.publish(300)
    async with reading(stage, installed, live) as reader:
        await reader.until(300)
        for disturb in (stage.link.cut, _kill(stage), _drain(stage), _refuse(stage)):
            await stage.publish(3)
            done = disturb()
            await stage.publish(3)
            if done is not None:
                await done
            last = await stage.publish(3)
            await reader.until(last)
        assert [event["id"] for event in reader.events] == list(range(1, last + 1))
        assert [event["data"]["n"] for event in reader.events] == list(range(1, last + 1))


def _kill(stage: ClientFixture) -> Any:
    return lambda: asyncio.ensure_future(stage.restart(grace_s=0))


def _drain(stage: ClientFixture) -> Any:
    return lambda: asyncio.ensure_future(stage.restart())


def _refuse(stage: ClientFixture) -> Any:
    async def refuse() -> None:
        await stage.refuse(True)
        await asyncio.sleep(0.3)
        await stage.refuse(False)

    return lambda: asyncio.ensure_future(refuse())


@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_the_client_renews_its_token(stage: ClientFixture, installed: Path, live: str) -> None:
    async with reading(stage, installed, live, life_s=2) as reader:
        await reader.up_to_date()
        for _ in range(6):
            await asyncio.sleep(0.8)
            await reader.until(await stage.publish())
        assert [event["id"] for event in reader.events] == list(range(1, 7))
        assert reader.failures == []


@pytest.mark.parametrize("live", ["long-poll", "sse"])
@pytest.mark.parametrize("reason", ["too-old", "epoch"])
async def test_the_client_learns_of_a_gap(stage: ClientFixture, installed: Path, live: str, reason: str) -> None:
    await stage.publish(3)
    async with reading(stage, installed, live) as reader:
        await reader.until(3)
    await stage.publish(3)
    if reason == "epoch":
        await stage.replace()
    else:
        await stage.forget()
    await stage.restart()  # it has the events in memory
    async with reading(stage, installed, live, reader.offset) as late:
        failure = await late.line()
        assert failure["failed"] == 410
        assert failure["details"]["reset"] == reason
        assert late.events == []
    async with reading(stage, installed, live, "now") as continued:
        await continued.up_to_date()
        await continued.until(await stage.publish())
        assert [event["id"] for event in continued.events] == [7]


async def test_conformance(migrated: Database, installed: Path) -> None:
    left_out: list[str] = []
    for part in json.loads((SOURCE / "conformance.json").read_text())["not applicable"]:
        assert part["reason"]
        left_out += part["tests"]
    pattern = "^(?!" + "|".join(map(re.escape, left_out)) + ")"
    report = installed / "report.json"
    async with DurableStreamsServer(migrated.url) as server:
        process = await asyncio.create_subprocess_exec(
            str(installed / "node_modules" / ".bin" / "vitest"),
            "run",
            "conformance.test.mjs",
            "--reporter=json",
            f"--outputFile={report}",
            f"--testNamePattern={pattern}",
            "--testTimeout=60000",
            # Server-Sent Events that take longer than two seconds on a busy machine fail in the suite.
            "--retry=2",
            cwd=installed,
            env={**os.environ, "STREAMS_URL": server.url, "CI": "true"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(CONFORMANCE_S):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert report.exists(), output.decode()
    tests = [test for file in json.loads(report.read_text())["testResults"] for test in file["assertionResults"]]
    failed = [(test["fullName"], test["failureMessages"]) for test in tests if test["status"] == "failed"]
    assert not failed, failed
    passed = [test["fullName"] for test in tests if test["status"] == "passed"]
    skipped = [test["fullName"] for test in tests if test["status"] in ("skipped", "pending")]
    assert len(passed) + len(skipped) == len(tests)
    assert len(passed) >= 91
    # Each test either runs or has a reason, and each reason has tests.
    assert [name for name in skipped if not name.startswith(tuple(left_out))] == []
    unused = [begin for begin in left_out if not any(name.startswith(begin) for name in skipped)]
    assert unused == []
