"""The order in which a Reflector lists, watches and retries. `test_client.py` runs it against an HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence, Set
from typing import Any

import pytest

from testing.patience import PATIENCE_S
from userrealtime_operator.kube.client import Api, ApiError, Labels
from userrealtime_operator.kube.reflector import FIRST_DELAY_S, Reflector
from userrealtime_operator.kube.store import Store
from userrealtime_operator.kube.types import Object, ResourceType

PODS = ResourceType("v1", "pods")
LABELS = {"app": "relay"}

Watch = Sequence[tuple[str, Object] | ApiError]
"""The events of one watch; an error ends it."""


def item(name: str, version: int) -> Object:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


def page(version: int, *names: str, more: str = "") -> Object:
    metadata = {"resourceVersion": str(version), "continue": more}
    return {"metadata": metadata, "items": [item(name, version) for name in names] or None}


class StandInApi(Api):
    """Returns prepared pages and watches in order, and logs the requests. The last watch never ends."""

    def __init__(self, log: list[str], pages: Sequence[Object | ApiError], watches: Sequence[Watch]) -> None:
        self.log = log
        self._pages = list(pages)
        self._watches = list(watches)
        self.idle = asyncio.Event()
        self.open = 0

    async def page(self, api_version: str, plural: str, namespace: str, selector: Labels, token: str = "") -> Object:
        assert (api_version, plural, namespace, selector) == ("v1", "pods", "users", LABELS)
        self.log.append(f"list {token}".rstrip())
        answer = self._pages.pop(0)
        if isinstance(answer, ApiError):
            raise answer
        return answer

    async def watch(
        self, api_version: str, plural: str, namespace: str, selector: Labels, version: str, limit_s: int
    ) -> AsyncGenerator[tuple[str, Object], None]:
        assert (api_version, plural, namespace, selector, limit_s) == ("v1", "pods", "users", LABELS, 7)
        self.log.append(f"watch {version}")
        self.open += 1
        try:
            if not self._watches:
                self.idle.set()
                await asyncio.Event().wait()
            for event in self._watches.pop(0):
                if isinstance(event, ApiError):
                    raise event
                yield event
        finally:
            self.open -= 1


class LoggingStore(Store):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def put(self, item: Object) -> None:
        self.log.append(f"put {item['metadata']['name']}")

    def remove(self, item: Object) -> None:
        self.log.append(f"remove {item['metadata']['name']}")

    def retain(self, namespace: str, names: Set[str], version: int) -> None:
        self.log.append(f"retain {namespace} {','.join(sorted(names))} {version}")

    def begin_list(self, version: int) -> None:
        self.log.append(f"begin {version}")

    def advance(self, version: int) -> None:
        self.log.append(f"advance {version}")


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays before retries, which take no time."""
    found: list[float] = []
    real: Callable[[float], Awaitable[Any]] = asyncio.sleep

    async def sleep(delay: float) -> None:
        found.append(delay)
        await real(0)

    monkeypatch.setattr("userrealtime_operator.kube.reflector.asyncio.sleep", sleep)
    monkeypatch.setattr("userrealtime_operator.kube.reflector.random.uniform", lambda _low, _high: 1.0)
    return found


async def run(pages: Sequence[Object | ApiError], *watches: Watch) -> list[str]:
    """The requests and the changes of the store, in their order, until the last watch waits."""
    log: list[str] = []
    api = StandInApi(log, pages, watches)
    reflector = Reflector(api, PODS, "users", LABELS, LoggingStore(log), timeout_s=7)
    assert not reflector.has_synced
    task = asyncio.create_task(reflector.run())
    async with asyncio.timeout(PATIENCE_S):
        await reflector.wait_for_sync()
        assert reflector.has_synced
        await api.idle.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert api.open == 0, "a watch was not closed"
    return log


async def test_each_page_is_stored_before_the_next_is_read(delays: list[float]) -> None:
    log = await run([page(5, "a", "b", more="next"), page(5, more="last"), page(5, "c")])
    assert log == [
        *("list", "begin 5", "put a", "put b", "list next", "list last", "put c", "retain users a,b,c 5", "watch 5"),
    ]
    assert delays == []


async def test_a_watch_resumes_at_the_last_version(delays: list[float]) -> None:
    changes = [
        ("ADDED", item("a", 6)),
        ("MODIFIED", item("a", 7)),
        ("DELETED", item("a", 8)),
        ("BOOKMARK", item("", 9)),
    ]
    log = await run([page(5)], changes)
    assert log == [
        *("list", "begin 5", "retain users  5", "watch 5"),
        *("put a", "advance 6", "put a", "advance 7", "remove a", "advance 8", "advance 9", "watch 9"),
    ]
    assert delays == [FIRST_DELAY_S]


@pytest.mark.parametrize("status", [0, 429])
async def test_the_version_is_kept_if_the_api_server_does_not_answer(delays: list[float], status: int) -> None:
    log = await run([page(5)], [ApiError(status, "later")], [ApiError(status, "later", after_s=3.0)])
    assert [line for line in log if line.startswith(("list", "watch"))] == ["list", "watch 5", "watch 5", "watch 5"]
    assert delays == [0.1, 3.0]


@pytest.mark.parametrize("status", [410, 500, 403])
async def test_the_objects_are_listed_again_after_other_errors(delays: list[float], status: int) -> None:
    log = await run([page(5, "a"), page(9, "b")], [ApiError(status, "too old")])
    assert log[-5:] == ["list", "begin 9", "put b", "retain users b 9", "watch 9"]


async def test_a_list_that_fails_starts_again_at_its_first_page(delays: list[float]) -> None:
    log = await run([page(5, "a", more="next"), ApiError(410, "expired"), page(6, "a")])
    assert [line for line in log if line.startswith(("list", "retain"))] == [
        *("list", "list next", "list", "retain users a 6"),
    ]


async def test_the_delay_doubles_to_a_limit_and_resets_after_an_event(delays: list[float]) -> None:
    failures = [[ApiError(0, "no answer")]] * 8
    await run([page(5)], *failures, [("ADDED", item("a", 6)), ApiError(0, "no answer")])
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 0.1]
