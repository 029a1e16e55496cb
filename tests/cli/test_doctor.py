"""The command `doctor`: with a real relay, behind whatever is in the way."""

from __future__ import annotations

import asyncio
import base64
import re
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from testing.local.postgres import LocalPostgres, free_port
from testing.patience import PATIENCE_S
from tests.clients.stage import ROOT, Stage
from tests.relay.support import KEY
from userrealtime_cli.findings import ADVICE, of_answer, of_resource, of_token

from .api_server import ALICE, SECRET, Answers, Run, refusal, resource

GOOD = (
    "ok     resource: users/alice is there\n"
    "ok     operator: it has seen the resource as it is\n"
    "ok     database: it knows the user\n"
    "ok     pod: it serves clients\n"
    "ok     key: it can be read\n"
    "ok     route: it leads to the relay\n"
    "ok     token: the relay takes one made of the user's key\n"
    "ok     websocket: events come through, at event 2\n"
    "ok     sse: events come through, at event 2\n"
    "all is well\n"
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
async def stage(postgres_server: LocalPostgres, answers: Answers) -> AsyncIterator[Stage]:
    async with Stage(postgres_server) as stage:
        await stage.publish(2)
        answers[ALICE] = 200, alice(stage.url)
        answers[SECRET] = 200, secret(KEY)
        yield stage


def secret(key: str) -> dict[str, Any]:
    return {"metadata": {"name": "urt-alice"}, "data": {"TOKEN_KEY": base64.b64encode(key.encode()).decode()}}


async def test_nothing_is_wrong(run: Run, stage: Stage) -> None:
    assert await asyncio.to_thread(run, "doctor", "alice") == (0, GOOD, "")


async def test_what_does_not_come_through_is_told(run: Run, stage: Stage) -> None:
    await stage.block("websocket")
    status, out, _ = await asyncio.to_thread(run, "doctor", "alice")
    assert status == 0  # events arrive
    assert "note   websocket: it does not come through: HTTP 502\n       whatever stands in front must pass" in out
    assert "ok     sse: events come through" in out


async def test_a_key_that_is_another_is_told(run: Run, stage: Stage, answers: Answers) -> None:
    answers[SECRET] = 200, secret("a key that the relay does not know about")
    status, out, _ = await asyncio.to_thread(run, "doctor", "alice")
    assert status == 1
    assert "wrong  token: the relay refuses one made of the user's key\n       does the platform ask" in out
    assert out.endswith("wrong: 1\n")


@pytest.mark.parametrize(
    ("path", "answer", "told"),
    [
        (ALICE, refusal(404, "not found", name="alice"), "wrong  resource: there is no UserRealtime 'alice'"),
        (SECRET, refusal(404, "not found", name="urt-alice"), "wrong  key: the Secret urt-alice is not there"),
        (SECRET, refusal(403, "you cannot get secrets"), "wrong  key: you may not do this"),
        (SECRET, (200, secret("short")), "wrong  key: it is too short to be one\n       delete the Secret urt-alice"),
        (ALICE, (200, alice(None)), "wrong  route: alice has no URL"),
        (ALICE, (200, alice("http://nobody.invalid/alice")), "wrong  route: nobody.invalid has no address"),
    ],
)
async def test_what_is_wrong_is_told(
    run: Run, stage: Stage, answers: Answers, path: str, answer: tuple[int, Any], told: str
) -> None:
    answers[path] = answer
    status, out, _ = await asyncio.to_thread(run, "doctor", "alice")
    assert status == 1
    assert told in out
    assert out.endswith("wrong: 1\n")


async def test_a_route_to_nowhere_is_told(run: Run, stage: Stage, answers: Answers) -> None:
    url = f"http://127.0.0.1:{free_port()}/alice"
    answers[ALICE] = 200, alice(url)
    status, out, _ = await asyncio.to_thread(run, "doctor", "alice")
    assert status == 1
    assert f"wrong  route: {url} does not answer: " in out


@pytest.fixture
def stranger() -> Iterator[str]:
    """A server that is no relay."""

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


async def test_a_route_to_somebody_else_is_told(run: Run, stage: Stage, answers: Answers, stranger: str) -> None:
    answers[ALICE] = 200, alice(stranger)
    status, out, _ = await asyncio.to_thread(run, "doctor", "alice")
    assert status == 1
    assert "wrong  route: HTTP 404: nothing is routed at this URL\n       does the ingress controller" in out


# --- what is found, without anything to ask


def verdicts(*conditions: dict[str, str], seen: int = 1) -> list[tuple[str, str]]:
    return [
        (finding.what, finding.verdict) for finding in of_resource(alice("https://h/alice", *conditions, seen=seen))
    ]


def test_conditions_are_read() -> None:
    ready, database, progressing = WELL
    good = [("operator", "ok"), ("database", "ok"), ("pod", "ok")]
    assert verdicts(*WELL) == good
    assert verdicts(*WELL, seen=0) == [("operator", "wrong"), *good[1:]]
    assert verdicts(ready, database, condition("Progressing", "True", "ImagePullFailed")) == [
        *good,
        ("new pod", "note"),
    ]
    crash = condition("Ready", "False", "CrashLoopBackOff", "it ended with 2")
    assert verdicts(crash, database, progressing) == [*good[:2], ("pod", "wrong")]
    away = condition("DatabaseReady", "Unknown", "DatabaseUnavailable", "refused")
    assert verdicts(ready, away, progressing) == [good[0], ("database", "wrong"), good[2]]
    assert verdicts(condition("Ready", "True", "Asleep"), database, condition("Asleep", "True", "Idle")) == good
    assert verdicts(*WELL, condition("Asleep", "False", "Awake")) == good
    assert verdicts(*WELL, condition("Asleep", "False", "ActivatorUnavailable")) == [*good, ("sleep", "note")]
    assert verdicts(*WELL, condition("SignalRange", "False", "ListenPastRange")) == [*good, ("signals", "note")]


def test_a_resource_that_nobody_has_seen() -> None:
    (finding,) = of_resource({"metadata": {"name": "alice", "generation": 1}, "spec": {"userId": "alice"}})
    assert (finding.what, finding.verdict) == ("operator", "wrong")
    assert "is it running" in finding.do


def test_every_reason_that_is_documented_has_advice() -> None:
    table = (ROOT / "docs" / "status.md").read_text().partition("| reason |")[2].partition("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines()]
    trouble = [row for row in rows if not row[2].strip().startswith("no problem")]
    assert {name for row in trouble for name in re.findall(r"`([A-Z]\w+)`", row[1])} == set(ADVICE)


def test_answers_are_told_apart() -> None:
    assert of_answer(401, True).verdict == "ok"
    for status, word in ((401, "in its place"), (503, "EndpointSlices"), (404, "Ingress"), (302, "in its place")):
        finding = of_answer(status, False)
        assert finding.verdict == "wrong"
        assert word in finding.do
    assert of_token(200, "").verdict == "ok"
    assert of_token(503, "Not connected to Postgres").what == "relay"
    assert "claims" in of_token(401, "Unauthorized").do
    assert of_token(400, "no").verdict == "wrong"
