"""The Python client against a real relay, over a network that breaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from testing.clients.fixture import ClientFixture
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.relay.harness import token
from userrealtime_client import (
    Broadcast,
    BroadcastError,
    Client,
    ClientError,
    Event,
    Loaded,
    Options,
    Position,
    PublishError,
    Reset,
    State,
)
from userrealtime_client import client as module
from userrealtime_client.machine import Transport

TRANSPORTS: Final[tuple[Transport, ...]] = ("websocket", "sse", "poll")
QUICK: Final[dict[str, Any]] = {
    "open_timeout": 3000,
    "ping_interval": 500,
    "pong_timeout": 500,
    "silence": 2500,
    "backoff": 50,
    "backoff_most": 500,
}


@pytest.fixture
async def stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    async with ClientFixture(postgres_server) as stage:
        yield stage


async def fresh() -> str:
    return token()


def connect(stage: ClientFixture, *transports: Transport, **more: Any) -> Client:
    options = Options(**{**QUICK, **more.pop("options", {}), **({"transports": transports} if transports else {})})
    return Client(stage.url, **{"token": fresh, "options": options, **more})


async def until(client: Client, state: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while client.state != state:
            await asyncio.sleep(0.01)


async def take(client: Client, count: int) -> list[Event | Reset | Loaded | Broadcast]:
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(client) for _ in range(count)]


@contextlib.asynccontextmanager
async def publishing(stage: ClientFixture) -> AsyncIterator[None]:
    """Publish an event every 20 ms while the block runs."""

    async def publish_on() -> None:
        while True:
            await stage.publish()
            await asyncio.sleep(0.02)

    task = asyncio.create_task(publish_on())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def judge(stage: ClientFixture, client: Client) -> None:
    """Assert that the client delivers every published event once and in order, and no other message."""
    last = await stage.publish()
    taken = await take(client, last)
    assert [message.id for message in taken if isinstance(message, Event)] == list(range(1, last + 1))
    assert [message.data["n"] for message in taken if isinstance(message, Event)] == list(range(1, last + 1))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_events_come_once_and_in_order(stage: ClientFixture, transport: Transport) -> None:
    async with connect(stage, transport) as client:
        await until(client, "connected")
        await stage.publish(500)
        await judge(stage, client)
        assert (client.transport, client.position) == (
            transport,
            Position(501, client.position and client.position.epoch),
        )


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_broadcasts_arrive_in_order_and_move_no_position(stage: ClientFixture, transport: Transport) -> None:
    async with connect(stage, transport, broadcasts=True) as client, connect(stage, transport) as another:
        await until(client, "connected")
        await until(another, "connected")
        await take_first(stage, client)
        await stage.broadcast(*range(5))
        await stage.publish()
        found: list[Any] = []
        while 4 not in found or not client.position or client.position.id < 1:
            [message] = await take(client, 1)
            found += [message.data] if isinstance(message, Broadcast) else []
        assert [each for each in found if each != "first"] == list(range(5))
        [event] = await take(another, 1)
        assert isinstance(event, Event)  # it did not ask for broadcasts


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_broadcast_of_a_client_reaches_the_others_and_not_itself(
    stage: ClientFixture, transport: Transport
) -> None:
    async with (
        connect(stage, transport, broadcasts=True) as one,
        connect(stage, transport, broadcasts=True) as two,
        connect(stage, "websocket", broadcasts=True) as three,
    ):
        assert not one.broadcast("early")  # it is not connected yet
        for each in (one, two, three):
            await until(each, "connected")
        for number in range(5):
            assert one.broadcast("typing", {"n": number})
        for each in (two, three):
            assert await take(each, 5) == [Broadcast("typing", {"n": number}) for number in range(5)]
        assert two.broadcast("reply")
        assert await take(one, 1) == [Broadcast("reply", {})]
        assert await take(three, 1) == [Broadcast("reply", {})]
        with pytest.raises(BroadcastError, match="too-big"):
            one.broadcast("typing", "x" * 7000)
        with pytest.raises(BroadcastError, match="invalid"):
            one.broadcast("")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_broadcasts_of_clients_are_refused_by_default(
    postgres_server: LocalPostgres, transport: Transport
) -> None:
    async with (
        ClientFixture(postgres_server, MAX_BROADCASTS_PER_SECOND="0") as stage,
        connect(stage, transport) as client,
    ):
        await until(client, "connected")
        with pytest.raises(BroadcastError, match=r"refused: .*spec\.limits\.broadcastsPerSecond"):
            await broadcast_on(client)
        await judge(stage, client)


async def broadcast_on(client: Client) -> None:
    """Send broadcasts until one is an error."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            client.broadcast("typing")
            await asyncio.sleep(0.05)


async def take_first(stage: ClientFixture, client: Client) -> None:
    """Broadcast until the client receives the first one: the relay starts to listen some time after its start."""
    first = asyncio.create_task(anext(client))
    async with asyncio.timeout(PATIENCE_S):
        while not first.done():
            await stage.broadcast("first")
            await asyncio.wait([first], timeout=0.2)
    assert first.result() == Broadcast("test.broadcast", "first")


def test_broadcasts_that_the_application_does_not_take_are_dropped() -> None:
    client = Client("http://127.0.0.1:1/alice", token="t", broadcasts=True)

    def deliver(*numbers: int) -> None:
        for number in numbers:
            client._deliver_broadcast({"type": "broadcast", "event": "e", "data": number})

    deliver(*range(module.MAX_BROADCASTS + 50))
    assert list(client._buffer) == [Broadcast("e", number) for number in range(module.MAX_BROADCASTS)]
    assert client._took(client._buffer.popleft()) == Broadcast("e", 0)
    deliver(-1, -2)
    assert len(client._buffer) == module.MAX_BROADCASTS
    assert client._buffer[-1] == Broadcast("e", -1)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_whatever_breaks(stage: ClientFixture, transport: Transport) -> None:
    states: list[str] = []
    async with connect(stage, transport, on_state=lambda state: states.append(state.state)) as client:
        await until(client, "connected")
        async with publishing(stage):
            await asyncio.sleep(0.5)
            await stage.refuse(True)
            await asyncio.sleep(2)
            await stage.refuse(False)
            await asyncio.sleep(0.5)
            await stage.restart()
            await asyncio.sleep(0.5)
            await stage.silence(True)
            await asyncio.sleep(2)
            await stage.silence(False)
            await asyncio.sleep(0.5)
            await stage.restart(grace_s=0)
        await judge(stage, client)
    assert states.count("waiting") >= 3
    assert states[-1] == "closed"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_state_and_its_events_join_without_a_gap_or_a_duplicate(
    stage: ClientFixture, transport: Transport
) -> None:
    """The number of the last change goes up by one with each event, also across breaks and resets."""
    failures = ["an error of the application"]
    states: list[State] = []
    loading = 0

    async def load() -> tuple[int, str]:
        nonlocal loading
        if failures:
            raise RuntimeError(failures.pop())
        loading += 1
        try:
            snapshot = await stage.snapshot()
            await asyncio.sleep(0.2)
            return snapshot["state"], snapshot["position"]
        finally:
            loading -= 1

    async with publishing(stage), connect(stage, transport, state=load, on_state=states.append) as client:
        loaded: list[str | None] = []
        state = 0

        async def follow(until: int) -> None:
            nonlocal state
            async with asyncio.timeout(PATIENCE_S):
                while state < until:
                    message = await anext(client)
                    assert not loading
                    if isinstance(message, Loaded):
                        loaded.append(message.reset)
                        state = message.state
                        assert client.position == message.position
                    else:
                        assert isinstance(message, Event)
                        state += 1
                        assert message.data == {"n": state}

        await follow(await stage.publish())
        await stage.replace()
        await stage.restart()
        await follow(await stage.publish() + 20)
        await stage.refuse(True)
        await stage.publish(3)
        await stage.forget()
        await stage.restart()  # it has the events in memory
        await stage.refuse(False)
        await follow(await stage.publish() + 20)
    assert loaded[:2] == [None, "epoch"]
    assert set(loaded[2:]) == {"too-old"}
    assert "no state: an error of the application" in [each.reason for each in states]
    assert [each.state for each in states][:3] == ["loading", "waiting", "loading"]


async def test_a_state_without_a_position_of_the_database_is_reported(stage: ClientFixture) -> None:
    states: list[State] = []

    async def load() -> tuple[None, str]:
        return None, "head"

    async with connect(stage, state=load, on_state=states.append) as client:
        await until(client, "waiting")
    assert (
        states[1].reason == "no state: 'head' is not a position: return the text of userrealtime.position() unchanged"
    )


async def test_a_client_resumes_from_the_text_of_a_position(stage: ClientFixture) -> None:
    await stage.publish(2)
    position = (await stage.snapshot())["position"]
    await stage.publish(2)
    async with connect(stage, position=position) as client:
        assert str(client.position) == position
        assert [message.id for message in await take(client, 2) if isinstance(message, Event)] == [3, 4]


@pytest.mark.parametrize("transport", ["websocket", "sse"])  # the limit of a poll is 35 s: see the vectors
async def test_a_connection_that_goes_silent_for_good_is_replaced(stage: ClientFixture, transport: Transport) -> None:
    states: list[str] = []
    async with connect(stage, transport, on_state=lambda state: states.append(state.state)) as client:
        await until(client, "connected")
        stage.link.strand()
        async with asyncio.timeout(PATIENCE_S):
            while "waiting" not in states:
                await asyncio.sleep(0.01)
        await judge(stage, client)


async def test_after_sleep_the_connection_is_asked_at_once(
    stage: ClientFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCH_S", 0.1)
    slept = 0.0
    offset = Client._offset
    monkeypatch.setattr(Client, "_offset", lambda client: offset(client) + slept)
    states: list[str] = []
    options = {"ping_interval": 3_600_000}  # no ping may detect it first
    async with connect(
        stage, "websocket", options=options, on_state=lambda state: states.append(state.state)
    ) as client:
        await until(client, "connected")
        stage.link.strand()
        await asyncio.sleep(0.5)
        assert "waiting" not in states
        slept = 60.0
        async with asyncio.timeout(PATIENCE_S):
            while "waiting" not in states:
                await asyncio.sleep(0.01)
        await judge(stage, client)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_tokens_that_end_are_replaced(stage: ClientFixture, transport: Transport) -> None:
    asked: list[str] = []
    states: list[State] = []

    async def short() -> str:
        asked.append(token(life_s=4))
        return asked[-1]

    async with connect(stage, transport, token=short, on_state=states.append) as client:
        await until(client, "connected")
        async with publishing(stage):
            await asyncio.sleep(9)
        await judge(stage, client)
    waits = [state.reason for state in states if state.state == "waiting"]
    assert len(asked) >= 3
    if transport == "websocket":  # renewed over the existing connection
        assert waits == []
    else:
        assert waits
        assert all(reason.startswith(("4001", "HTTP 401")) for reason in waits)


async def test_what_does_not_come_through_is_got_round(stage: ClientFixture) -> None:
    async with connect(stage) as client:
        await until(client, "connected")
        for blocked, transport in ((("websocket",), "sse"), (("websocket", "sse"), "poll"), (("sse",), "poll")):
            await stage.publish(5)
            await stage.block(*blocked)
            async with asyncio.timeout(PATIENCE_S):
                while not (client.state == "connected" and client.transport == transport):
                    await asyncio.sleep(0.01)
        await judge(stage, client)
        assert await client.publish("through.anything", {"by": "post"}) == (await stage.inbox())[0]["id"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_gap_is_told(stage: ClientFixture, transport: Transport) -> None:
    async with connect(stage, transport) as client:
        await until(client, "connected")
        await stage.publish(1)
        (first,) = await take(client, 1)
        assert isinstance(first, Event)
        position = client.position
    await stage.publish(100)  # more than the relay keeps in memory
    await stage.forget()
    async with connect(stage, transport, position=position) as client:
        (told,) = await take(client, 1)
        assert told == Reset("too-old", 101, position and position.epoch)
        epoch = await stage.replace()
        await stage.publish(1)
        (told,) = await take(client, 1)
        assert told == Reset("epoch", 102, epoch)
        assert client.position == Position(102, epoch)
        await stage.publish(1)
        (event,) = await take(client, 1)
        assert isinstance(event, Event)
        assert event.id == 103


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_published_is_stored_once_and_in_order(stage: ClientFixture, transport: Transport) -> None:
    async with connect(stage, transport, receive=False) as client:
        waiting = [asyncio.create_task(client.publish("note.added", {"n": n})) for n in range(60)]
        while sum(task.done() for task in waiting) < 10:
            await asyncio.sleep(0.01)
        await stage.refuse(True)
        await asyncio.sleep(0.5)
        await stage.refuse(False)
        while sum(task.done() for task in waiting) < 30:
            await asyncio.sleep(0.01)
        await stage.restart(grace_s=0)
        async with asyncio.timeout(PATIENCE_S):
            ids = await asyncio.gather(*waiting)
    stored = await stage.inbox()
    assert [message["id"] for message in stored] == ids
    assert [message["data"]["n"] for message in stored] == list(range(60))


async def test_the_same_ref_is_stored_once(stage: ClientFixture) -> None:
    async with connect(stage) as client:
        first = await client.publish("note.added", "what came first", ref="one")
        assert await client.publish("note.added", "another", ref="one") == first
    assert [message["data"] for message in await stage.inbox()] == ["what came first"]


async def test_what_cannot_be_published_is_told(stage: ClientFixture) -> None:
    async with connect(stage, options={"max_message_bytes": 10**7}) as client:
        for arguments, code in (((""), "invalid"), (("zero", "\0"), "refused"), (("big", "x" * 10**5), "too-big")):
            event, data = arguments if isinstance(arguments, tuple) else (arguments, None)
            with pytest.raises(PublishError) as told:
                await client.publish(event, data)
            assert told.value.code == code
        with pytest.raises(ValueError, match="JSON"):
            await client.publish("note.added", float("nan"))
        assert await client.publish("note.added") > 0  # a rejected message has not ended it
    with pytest.raises(PublishError, match="closed"):
        await client.publish("note.added")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_token_that_is_refused_twice_ends_the_client(stage: ClientFixture, transport: Transport) -> None:
    asked = 0

    async def wrong() -> str:
        nonlocal asked
        asked += 1
        return token(key="the key of somebody else altogether")

    async with connect(stage, transport, token=wrong) as client:
        with pytest.raises(ClientError) as told:
            await take(client, 1)
        assert (told.value.code, client.state, asked) == ("unauthorized", "closed", 2)


async def test_a_token_that_cannot_be_had_is_asked_for_again(stage: ClientFixture) -> None:
    asked = 0

    async def at_last() -> str:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise OSError("logged out")
        return token()

    reasons: list[str] = []
    async with connect(stage, token=at_last, on_state=lambda state: reasons.append(state.reason)) as client:
        await until(client, "connected")
    assert reasons.count("no token: logged out") == 2


async def test_a_slow_client_reconnects_and_misses_no_event(stage: ClientFixture) -> None:
    async with connect(stage, token=token()) as client:
        await until(client, "connected")
        await stage.publish(3000)
        await until(client, "paused")
        await judge(stage, client)


async def test_a_listener_that_fails_ends_nothing(stage: ClientFixture, caplog: pytest.LogCaptureFixture) -> None:
    def fail(state: State) -> None:
        raise LookupError(state.state)

    async with connect(stage, on_state=fail) as client:
        await until(client, "connected")
        await judge(stage, client)
    assert "on_state failed" in caplog.text


async def test_a_client_that_only_publishes_keeps_nothing(stage: ClientFixture) -> None:
    async with connect(stage, receive=False) as client:
        await until(client, "connected")
        await stage.publish(3000)
        async with asyncio.timeout(PATIENCE_S):
            while client.position is None or client.position.id < 3000:
                await asyncio.sleep(0.01)
        assert client.state == "connected"


@pytest.mark.parametrize("url", ["alice", "ws://h/alice", "https://h/alice?token=t", "https:///alice"])
def test_a_url_that_is_none_is_told(url: str) -> None:
    with pytest.raises(ValueError, match=r"status\.url"):
        Client(url, token="t")


async def test_a_client_that_is_not_entered_says_so(stage: ClientFixture) -> None:
    client = connect(stage)
    with pytest.raises(RuntimeError, match="async with"):
        await anext(client)
    with pytest.raises(RuntimeError, match="async with"):
        await client.publish("note.added")


HARD_VALUES: Final = (
    "('1' || repeat('0', 131071))",
    "('-0.' || repeat('0', 16000) || '1')",
    "(repeat('[', 5000) || repeat(']', 5000))",
    "(repeat('{\"a\":', 3000) || '1' || repeat('}', 3000))",
    '(\'{"__proto__": 1, "a": 1, "a": 12345678901234567890, "": null}\')',
    "(to_json(repeat('\"\\', 240000))::text)",
    "(to_json(E'\\u2028 \\U0001F600 \\u0001'::text)::text)",
    "('9007199254740993.000000000000000000001')",
)
"""Expressions of JSON text that jsonb accepts and that parsers may reject."""


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_any_value_of_jsonb_arrives_and_so_do_the_events_after_it(
    stage: ClientFixture, transport: Transport
) -> None:
    written = await stage.publish_values(HARD_VALUES)
    async with connect(stage, transport, position=Position(0, None)) as client:
        first = await take(client, len(HARD_VALUES))
        await stage.publish()
        [last] = await take(client, 1)
    events = [message for message in first if isinstance(message, Event)]
    assert [event.id for event in events] == list(range(1, len(HARD_VALUES) + 1))
    assert str(events[0].data) == "1" + "0" * 131_071
    levels, value = 0, events[2].data
    while isinstance(value, list):
        levels, value = levels + 1, value[0] if value else None
    assert levels == 5_000
    assert events[4].data == {"__proto__": 1, "a": 12345678901234567890, "": None}
    assert events[5].data == '"\\' * 240_000
    assert isinstance(last, Event)
    async with connect(stage, transport, position=Position(0, None), parse=str) as client:
        assert [
            message.data for message in await take(client, len(HARD_VALUES)) if isinstance(message, Event)
        ] == written


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_data_that_the_application_cannot_parse_is_reported(stage: ClientFixture, transport: Transport) -> None:
    def parse(text: str) -> object:
        if text == '{"n": 2}':
            raise OverflowError("two is too much")
        return text

    await stage.publish(3)
    async with connect(stage, transport, position=Position(0, None), parse=parse) as client:
        one, two, three = await take(client, 3)
    assert isinstance(two, Event)
    assert (two.id, two.event, two.data, two.text, str(two.error)) == (
        2,
        "test.event",
        None,
        '{"n": 2}',
        "two is too much",
    )
    assert [(event.data, event.error, event.text) for event in (one, three) if isinstance(event, Event)] == [
        ('{"n": 1}', None, None),
        ('{"n": 3}', None, None),
    ]
