"""The commands `tail` and `publish`, with a real relay and a fake API server."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest

from testing.cli import ALICE, SECRET, Answers, Run, resource
from testing.clients.fixture import ClientFixture
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.relay.harness import KEY, token
from userrealtime_client import Broadcast, Client


@pytest.fixture
async def stage(postgres_server: LocalPostgres, answers: Answers) -> AsyncIterator[ClientFixture]:
    """The relay of the user alice."""
    async with ClientFixture(postgres_server) as stage:
        answers[ALICE] = 200, resource("alice", "alice", url=stage.url)
        key = base64.b64encode(KEY.encode()).decode()
        answers[SECRET] = 200, {"metadata": {"name": "urt-alice"}, "data": {"TOKEN_KEY": key}}
        yield stage


@pytest.mark.parametrize("transport", [(), ("--transport", "sse"), ("--transport", "poll")])
async def test_events_are_shown_a_line_each(run: Run, stage: ClientFixture, transport: tuple[str, ...]) -> None:
    await stage.publish(3)
    status, out, err = await asyncio.to_thread(run, "tail", "alice", "--after", "1", "--count", "2", *transport)
    assert status == 0
    assert [(line["type"], line["id"], line["data"]) for line in map(json.loads, out.splitlines())] == [
        ("event", 2, {"n": 2}),
        ("event", 3, {"n": 3}),
    ]
    assert err == f"connected by {transport[-1] if transport else 'websocket'}\n"


@pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])
async def test_data_is_shown_as_postgres_writes_it(run: Run, stage: ClientFixture, transport: str) -> None:
    values = ("('{\"n\":1' || repeat('0', 5000) || '}')", "(repeat('[', 5000) || repeat(']', 5000))", "('1.10')")
    written = await stage.publish_values(values)
    arguments = ("tail", "alice", "--after", "0", "--count", "3", "--transport", transport)
    status, out, _ = await asyncio.to_thread(run, *arguments)
    assert status == 0
    assert [line.partition('"data": ')[2].removesuffix("}") for line in out.splitlines()] == written


async def test_a_reset_is_a_line_too(run: Run, stage: ClientFixture) -> None:
    await stage.publish(2)
    status, out, _ = await asyncio.to_thread(run, "tail", "alice", "--after", "9", "--timeout", "2s")
    (line,) = map(json.loads, out.splitlines())
    assert (status, line["type"], line["reason"], line["cursor"]) == (3, "reset", "ahead", 2)


async def test_broadcasts_are_lines_on_request(run: Run, stage: ClientFixture) -> None:
    arguments = ("tail", "alice", "--count", "1", "--broadcasts")
    running = asyncio.create_task(asyncio.to_thread(run, *arguments))
    async with Client(stage.url, token=token(), broadcasts=True) as client:

        async def last(value: int) -> None:
            while not isinstance(message := await anext(client), Broadcast) or message.data != value:
                pass

        # Until both are connected, and the relay listens.
        heard = asyncio.create_task(last(0))
        async with asyncio.timeout(PATIENCE_S):
            while not (heard.done() and await stage.connections() == 2):
                await stage.broadcast(0)
                await asyncio.sleep(0.1)
            await stage.broadcast(1, 2)
            await last(2)
            await stage.publish()
            status, out, _ = await running
    lines = [json.loads(line) for line in out.splitlines()]
    found = [line for line in lines if line.get("data") != 0]
    assert status == 0
    assert found[:2] == [{"type": "broadcast", "event": "test.broadcast", "data": number} for number in (1, 2)]
    assert [line["type"] for line in found[2:]] == ["event"]


async def test_no_cluster_is_asked_with_a_url(
    run: Run, stage: ClientFixture, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers.clear()
    monkeypatch.setenv("USERREALTIME_TOKEN", token())
    await stage.publish(1)
    arguments = ("tail", "--connect", stage.url, "--after", "0", "--count", "1")
    status, out, _ = await asyncio.to_thread(run, *arguments)
    assert (status, json.loads(out)["id"]) == (0, 1)
    monkeypatch.setenv("USERREALTIME_TOKEN", "not.a.token")
    status, out, err = await asyncio.to_thread(run, *arguments)
    assert (status, out) == (1, "")
    assert "the relay rejected the token" in err
    monkeypatch.delenv("USERREALTIME_TOKEN")
    assert "USERREALTIME_TOKEN" in (await asyncio.to_thread(run, *arguments))[2]
    monkeypatch.setenv("USERREALTIME_TOKEN", token())
    assert "status.url" in (await asyncio.to_thread(run, "tail", "--connect", "alice"))[2]


async def test_a_message_is_published_and_its_id_told(run: Run, stage: ClientFixture) -> None:
    arguments = ("publish", "alice", "--event", "note.added", "--data", '{"text": "ö"}', "--ref", "one")
    status, out, err = await asyncio.to_thread(run, *arguments)
    (stored,) = await stage.inbox()
    assert (status, int(out), stored["event"], stored["data"]) == (0, stored["id"], "note.added", {"text": "ö"})
    assert err == "connected by websocket\n"
    assert (await asyncio.to_thread(run, *arguments))[1] == out  # the same ref, the same message
    assert len(await stage.inbox()) == 1


async def test_why_a_message_is_not_stored_is_told(
    run: Run, stage: ClientFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = await asyncio.to_thread(run, "publish", "alice", "--event", "")
    assert (status, out) == (1, "")
    assert "not stored: invalid" in err
    monkeypatch.setenv("USERREALTIME_TOKEN", "not.a.token")
    status, _, err = await asyncio.to_thread(run, "publish", "--connect", stage.url, "--event", "x")
    assert status == 1
    assert "the relay rejected the token" in err
    await stage.refuse(True)
    status, _, err = await asyncio.to_thread(run, "publish", "alice", "--event", "x", "--timeout", "1s")
    assert status == 3
    assert "not acknowledged within 1 s" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("tail",), "one of the arguments name --user-id --connect is required"),
        (("tail", "alice", "--after", "x"), "'x' is not the id of an event"),
        (("tail", "alice", "--count", "0"), "'0' is not a number of events"),
        (("tail", "alice", "--timeout", "soon"), "'soon' is not a duration"),
        (("publish", "alice"), "required: --event"),
        (("publish", "alice", "--event", "x", "--data", "{"), "not JSON"),
    ],
)
def test_wrong_usage_is_explained(
    run: Run, arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("command", ["tail", "publish", "doctor", "token"])
def test_help_helps(run: Run, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(command, "--help")
    assert end.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"usage: userrealtime {command} ")
    assert command == "token" or "Exit status: 0 " in said
