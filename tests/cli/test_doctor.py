"""The command `doctor`, with a real relay behind various obstacles."""

from __future__ import annotations

import asyncio
import base64
import re
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from testing.cli import ALICE, SECRET, Answers, Run, refusal, resource
from testing.clients.fixture import ROOT, ClientFixture
from testing.local.ports import free_port
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.relay.harness import KEY
from userrealtime_cli.findings import ADVICE, of_answer, of_resource, of_token

GOOD = (
    "ok     resource: users/alice exists\n"
    "ok     operator: it has processed the latest version of the resource\n"
    "ok     database: the user is registered\n"
    "ok     pod: it serves clients\n"
    "ok     key: it is readable\n"
    "ok     route: it reaches the relay\n"
    "ok     token: the relay accepts a token that is signed with the user's key\n"
    "ok     websocket: connected, position 2\n"
    "ok     sse: connected, position 2\n"
    "no problems found\n"
)


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


WELL = (
    condition("Ready", "True", "PodAvailable"),
    condition("DatabaseReady", "True", "Registered"),
    condition("Progressing", "False", "PodAvailable"),
)


def alice(url: str | None, *conditions: dict[str, str], seen: int = 1) -> dict[str, Any]:
    found = resource("alice", "alice", url=url, conditions=list(conditions or WELL), observedGeneration=seen)
    found["metadata"]["generation"] = 1
    return found


@pytest.fixture
async def stage(postgres_server: LocalPostgres, answers: Answers) -> AsyncIterator[ClientFixture]:
    async with ClientFixture(postgres_server) as stage:
        await stage.publish(2)
        answers[ALICE] = 200, alice(stage.url)
        answers[SECRET] = 200, secret(KEY)
        yield stage


def secret(key: str) -> dict[str, Any]:
    return {"metadata": {"name": "urt-alice"}, "data": {"TOKEN_KEY": base64.b64encode(key.encode()).decode()}}


async def test_nothing_is_wrong(run: Run, stage: ClientFixture) -> None:
    assert await asyncio.to_thread(run, "doctor", "alice") == (0, GOOD, "")


async def test_what_does_not_come_through_is_told(run: Run, stage: ClientFixture) -> None:
    await stage.block("websocket")
    status, out, _ = await asyncio.to_thread(run, "doctor", "alice")
    assert status == 0  # events arrive
    assert "note   websocket: no connection: HTTP 502\n       the proxies in front of the pod must forward" in out
    assert "ok     sse: connected" in out


async def test_a_key_that_is_another_is_told(run: Run, stage: ClientFixture, answers: Answers) -> None:
    answers[SECRET] = 200, secret("a key that the relay does not know about")
    status, out, _ = await asyncio.to_thread(run, "doctor", "alice")
    assert status == 1
    assert "error  token: the relay rejects a token that is signed with the user's key\n       does the platform" in out
    assert out.endswith("problems: 1\n")


@pytest.mark.parametrize(
    ("path", "answer", "told"),
    [
        (ALICE, refusal(404, "not found", name="alice"), "error  resource: there is no UserRealtime 'alice'"),
        (SECRET, refusal(404, "not found", name="urt-alice"), "error  key: the Secret urt-alice does not exist"),
        (SECRET, refusal(403, "you cannot get secrets"), "error  key: permission denied"),
        (SECRET, (200, secret("short")), "error  key: it is too short for a key\n       delete the Secret urt-alice"),
        (ALICE, (200, alice(None)), "error  route: alice has no URL"),
        (ALICE, (200, alice("http://nobody.invalid/alice")), "error  route: nobody.invalid does not resolve"),
    ],
)
async def test_what_is_wrong_is_told(
    run: Run, stage: ClientFixture, answers: Answers, path: str, answer: tuple[int, Any], told: str
) -> None:
    answers[path] = answer
    status, out, _ = await asyncio.to_thread(run, "doctor", "alice")
    assert status == 1
    assert told in out
    assert out.endswith("problems: 1\n")


async def test_a_route_to_nowhere_is_told(run: Run, stage: ClientFixture, answers: Answers) -> None:
    url = f"http://127.0.0.1:{free_port()}/alice"
    answers[ALICE] = 200, alice(url)
    status, out, _ = await asyncio.to_thread(run, "doctor", "alice")
    assert status == 1
    assert f"error  route: {url} does not answer: " in out


@pytest.fixture
def stranger() -> Iterator[str]:
    """A server that is not a relay."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/alice"
        server.shutdown()
        thread.join(timeout=PATIENCE_S)


async def test_a_route_to_somebody_else_is_told(
    run: Run, stage: ClientFixture, answers: Answers, stranger: str
) -> None:
    answers[ALICE] = 200, alice(stranger)
    status, out, _ = await asyncio.to_thread(run, "doctor", "alice")
    assert status == 1
    assert "error  route: HTTP 404: there is no route for this URL\n       does the ingress controller" in out


# --- findings, without requests


def verdicts(*conditions: dict[str, str], seen: int = 1) -> list[tuple[str, str]]:
    return [
        (finding.what, finding.verdict) for finding in of_resource(alice("https://h/alice", *conditions, seen=seen))
    ]


def test_conditions_are_read() -> None:
    ready, database, progressing = WELL
    good = [("operator", "ok"), ("database", "ok"), ("pod", "ok")]
    assert verdicts(*WELL) == good
    assert verdicts(*WELL, seen=0) == [("operator", "error"), *good[1:]]
    assert verdicts(ready, database, condition("Progressing", "True", "ImagePullFailed")) == [
        *good,
        ("new pod", "note"),
    ]
    crash = condition("Ready", "False", "CrashLoopBackOff", "it ended with 2")
    assert verdicts(crash, database, progressing) == [*good[:2], ("pod", "error")]
    away = condition("DatabaseReady", "Unknown", "DatabaseUnavailable", "refused")
    assert verdicts(ready, away, progressing) == [good[0], ("database", "error"), good[2]]
    assert verdicts(condition("Ready", "True", "Asleep"), database, condition("Asleep", "True", "Idle")) == good
    assert verdicts(*WELL, condition("Asleep", "False", "Awake")) == good
    assert verdicts(*WELL, condition("Asleep", "False", "ActivatorUnavailable")) == [*good, ("sleep", "note")]
    assert verdicts(*WELL, condition("ListenersWithinLimit", "False", "TooManyListeners")) == [
        *good,
        ("signals", "note"),
    ]
    assert verdicts(*WELL, condition("Contested", "True", "FieldsContested")) == [*good, ("objects", "note")]


def test_a_resource_that_nobody_has_seen() -> None:
    (finding,) = of_resource({"metadata": {"name": "alice", "generation": 1}, "spec": {"userId": "alice"}})
    assert (finding.what, finding.verdict) == ("operator", "error")
    assert "is it running" in finding.advice


def test_every_reason_that_is_documented_has_advice() -> None:
    table = (ROOT / "docs" / "status.md").read_text().partition("| reason |")[2].partition("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines()]
    trouble = [row for row in rows if not row[2].strip().startswith("no problem")]
    assert {name for row in trouble for name in re.findall(r"`([A-Z]\w+)`", row[1])} == set(ADVICE)


def test_answers_are_told_apart() -> None:
    assert of_answer(401, True).verdict == "ok"
    for status, word in ((401, "login"), (503, "EndpointSlices"), (404, "Ingress"), (302, "login")):
        finding = of_answer(status, False)
        assert finding.verdict == "error"
        assert word in finding.advice
    assert of_token(200, "").verdict == "ok"
    assert of_token(503, "Not connected to Postgres").what == "relay"
    assert "claims" in of_token(401, "Unauthorized").advice
    assert of_token(400, "no").verdict == "error"
