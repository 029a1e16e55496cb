"""The relay's session against the protocol's vectors: its messages are the ones that clients are tested with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from userrealtime_core.auth.errors import Unauthorized
from userrealtime_core.wire.broadcast import parse
from userrealtime_core.wire.connect_request import ConnectRequest
from userrealtime_core.wire.frames import encode_text, payloads
from userrealtime_core.wire.position import LogState
from userrealtime_core.wire.rate_limit import TokenBucket
from userrealtime_core.wire.session import Session
from userrealtime_core.wire.submission import Refused, Unavailable
from userrealtime_relay.wire.frames import encode_events

FOLDER = Path(__file__).parents[2] / "protocol/vectors"
VECTORS = json.loads((FOLDER / "relay.json").read_text())
CLIENT = json.loads((FOLDER / "client.json").read_text())


def verify(token: str) -> float:
    try:
        return float(VECTORS["tokens"][token])
    except KeyError:
        raise Unauthorized("not in the vectors") from None


def opened(case: dict[str, Any]) -> Session:
    opening: dict[str, Any] = case["opening"]
    parsed = ConnectRequest.parse(
        query=opening.get("query", ""),
        authorization=[opening["authorization"]] if "authorization" in opening else [],
        last_event_id=[opening["lastEventId"]] if "lastEventId" in opening else [],
        subprotocols=opening.get("subprotocols", []),
    )
    broadcasts_per_second = case.get("broadcastsPerSecond", VECTORS["broadcastsPerSecond"])
    return Session(
        parsed,
        user_id="alice",
        verify=verify,
        auth_timeout=10,
        now=0,
        messages_per_second=VECTORS["messagesPerSecond"],
        broadcasts=TokenBucket(broadcasts_per_second, 0) if broadcasts_per_second else None,
    )


def settle(session: Session, position: LogState, stores: dict[str, Any]) -> None:
    """Process the questions and submissions of a session, as a transport does."""
    while session.question is not None:
        session.locate(position)
    for submission in session.submissions:
        outcome = stores.get("id") or (Refused("no") if "refused" in stores else Unavailable("away"))
        session.acknowledge(submission.ref, outcome)
    session.submissions.clear()


def check(session: Session, wanted: dict[str, Any]) -> None:
    said = [json.loads(message) for message in session.take()]
    # The vectors do not determine the text of an error message.
    assert [{name: value for name, value in message.items() if name != "message"} for message in said] == wanted["says"]
    broadcasts = [json.loads(content.message) for content in session.broadcasts]
    assert broadcasts == wanted.get("broadcasts", [])
    session.broadcasts.clear()
    closing = session.closing and {"code": int(session.closing.code), "reason": session.closing.reason}
    assert closing == wanted.get("closes")
    if "cursor" in wanted:
        assert session.cursor == wanted["cursor"]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vector(case: dict[str, Any]) -> None:
    position = LogState(**case["log"])
    session = opened(case)
    settle(session, position, {})
    check(session, case["then"])
    for step in case["steps"]:
        match step:
            case {"hears": message}:
                session.receive(json.dumps(message), step["at"])
            case {"hearsText": text}:
                session.receive(text, step["at"])
            case {"ticks": _}:
                session.tick(step["at"])
            case {"finds": log}:
                session.reset_to_new_log(LogState(**log))
            case _:
                pytest.fail(f"a step that is not known: {step}")
        settle(session, position, step.get("stores", {}))
        check(session, step["then"])


@pytest.mark.parametrize("case", VECTORS["events"], ids=lambda case: case["name"])
def test_event(case: dict[str, Any]) -> None:
    row = case["row"]
    at = row["at"].replace("T", " ").replace("Z", "+00")  # as Postgres writes it
    [frame] = encode_events([("epoch", row["id"], row["event"], at, row["data"])])
    (text,) = payloads(frame)
    assert json.loads(bytes(text)) == case["message"]


@pytest.mark.parametrize("case", VECTORS["broadcasts"], ids=lambda case: case["name"])
def test_broadcast(case: dict[str, Any]) -> None:
    text = parse(json.dumps(case["message"]).encode())
    assert text is not None
    (payload,) = payloads(encode_text(text))
    assert json.loads(bytes(payload)) == case["message"]


def shapes(messages: list[dict[str, Any]]) -> dict[str, set[frozenset[str]]]:
    found: dict[str, set[frozenset[str]]] = {}
    for message in messages:
        found.setdefault(message["type"], set()).add(frozenset(message) - {"message", "ref"})
    return found


def test_clients_are_tested_with_what_the_relay_says() -> None:
    """Every message in the vectors of the clients has the members of the same type in the vectors of the relay."""
    says = [case["message"] for case in (*VECTORS["events"], *VECTORS["broadcasts"])]
    for case in VECTORS["cases"]:
        says += [message for step in (case, *case["steps"]) for message in step["then"]["says"]]
    given = shapes(says)
    hears = [
        step["message"]
        for case in CLIENT["cases"]
        if "cannot be understood" not in case["name"]
        for step in case["steps"]
        if isinstance(step.get("message"), dict)
    ]
    used = shapes([message for message in hears if message["type"] not in ("close", "news")])
    assert used.keys() == given.keys()
    assert {kind: used[kind] - given[kind] for kind in used} == {kind: set() for kind in used}
