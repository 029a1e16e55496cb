"""The Python client's machine, tested with the vectors of all clients, and functions that only Python has."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from userrealtime_client.machine import Action, Machine, Options, Position

VECTORS = json.loads((Path(__file__).parents[2] / "protocol/vectors/client.json").read_text())
SNAKE = {field.name.replace("_", ""): field.name for field in dataclasses.fields(Options)}


def options(limits: dict[str, Any]) -> Options:
    """Return options from the limits in the vectors, which have camel case names."""
    values: dict[str, Any] = {
        SNAKE[name.lower()]: tuple(value) if isinstance(value, list) else value for name, value in limits.items()
    }
    return Options(**values)


def tell(machine: Machine, now: float, step: dict[str, Any]) -> None:
    """Pass the input of a step to the machine."""
    match step:
        case {"start": _}:
            machine.start(now)
        case {"token": {"token": token, "goodFor": good_for}}:
            machine.token(now, token, good_for)
        case {"loaded": {"load": load, "position": position}}:
            machine.loaded(now, load, position)
        case {"notLoaded": {"load": load, "reason": reason}}:
            machine.not_loaded(now, load, reason)
        case {"noToken": reason}:
            machine.no_token(now, reason)
        case {"message": message}:
            machine.message(now, message)
        case {"answer": answer}:
            machine.answered(now, answer)
        case {"heard": _}:
            machine.heard(now)
        case {"closed": {"code": code, "reason": reason}}:
            machine.closed(now, code, reason)
        case {"refused": {"status": status, "reason": reason} as refused}:
            machine.refused(now, status, reason, refused.get("retryAfter"))
        case {"posted": {"ref": ref, "status": status, "body": body} as posted}:
            machine.posted(now, ref, status, body, posted.get("retryAfter"))
        case {"publish": {"ref": ref, "event": event} as published}:
            machine.publish(now, ref, event, published.get("data", {}))
        case {"broadcast": {"event": event} as sent}:
            unsent = machine.broadcast(now, event, sent.get("data", {}))
            assert (None if unsent is None else unsent.code) == step["unsent"], (step, unsent)
        case {"broadcastPosted": {"number": number, "status": status, "body": body}}:
            machine.broadcast_posted(number, status, body)
        case {"tick": _}:
            machine.tick(now)
        case {"probe": _}:
            machine.probe(now)
        case {"offline": _}:
            machine.offline()
        case {"pause": _}:
            machine.pause()
        case {"resume": _}:
            machine.resume(now)
        case {"close": _}:
            machine.close()
        case _:
            pytest.fail(f"a step that is not known: {step}")


def shown(action: Action) -> dict[str, Any]:
    name = type(action).__name__
    return {"do": name[0].lower() + name[1:], **dataclasses.asdict(action)}


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vector(case: dict[str, Any]) -> None:
    position = Position(**case["position"]) if "position" in case else None
    machine = Machine(
        options(case.get("limits", {})),
        random=lambda: case.get("random", 0.5),
        position=position,
        stateful=case.get("state", False),
        broadcasts=case.get("broadcasts", False),
    )
    for step in VECTORS["preludes"].get(case.get("after"), []) + case["steps"]:
        tell(machine, step["at"], step)
        did = [shown(action) for action in machine.take()]
        # An action matches if it has the members of the vector. Texts for humans are not compared.
        named = [{name: action.get(name) for name in wanted} for action, wanted in zip(did, step["then"], strict=False)]
        assert (named, len(did)) == (step["then"], len(step["then"])), (step, did)
        if "deadline" in step:
            assert machine.deadline == step["deadline"], step
