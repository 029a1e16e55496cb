"""The composition of the process, without a cluster and a database."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, ClassVar, Self

import pytest
from aiohttp import ClientSession
from kubernetes.aio.client.configuration import Configuration

from testing.operator.names import NAMES_KEY, OPAQUE
from testing.operator.samples import CONFIG, body
from testing.patience import PATIENCE_S
from userrealtime_operator import app as module
from userrealtime_operator.app import Operator, framework_settings
from userrealtime_operator.config import Config, Names
from userrealtime_operator.kube.client import CHILD_KINDS, Api, ApiError, Labels
from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.naming import Naming

KINDS = {"Secret": CHILD_KINDS["Secret"], "Service": CHILD_KINDS["Service"]}


class FakeApi(Api):
    """An API server with one resource and no children; its watches report nothing."""

    made: ClassVar[list[FakeApi]]
    resources: ClassVar[set[str]] = {"uid-of-alice"}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(Configuration(host="http://127.0.0.1:9"))
        self.options = options
        self.lists: list[tuple[str, str, Labels]] = []

    @classmethod
    async def connect(cls, *arguments: Any, **options: Any) -> Self:
        found = cls(*arguments, **options)
        cls.made.append(found)
        return found

    async def page(self, api_version: str, plural: str, namespace: str, selector: Labels, token: str = "") -> Object:
        self.lists.append((plural, namespace, selector))
        return {"metadata": {"resourceVersion": "5"}, "items": None}

    async def watch(self, *_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()
        yield

    async def uids(self, api_version: str, plural: str, namespace: str) -> set[str]:
        return self.resources

    async def get_lease(self, namespace: str, name: str) -> Object | None:
        raise ApiError(0, "no answer")


class FakeDatabase:
    def __init__(self, url: str) -> None:
        assert url == CONFIG.database_url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class FakeLeader:
    """Records that the operator leads."""

    terms = 0
    failure: Exception | None = None
    naming: Naming

    def __init__(self, _: Config, naming: Naming, *__: object) -> None:
        type(self).naming = naming

    async def run(self) -> None:
        type(self).terms += 1
        if self.failure:
            raise self.failure
        await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeApi.made = []
    monkeypatch.setattr(FakeLeader, "terms", 0)
    monkeypatch.setattr(module, "Api", FakeApi)
    monkeypatch.setattr(module, "Database", FakeDatabase)
    monkeypatch.setattr(module, "Leader", FakeLeader)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def running(lease: tuple[str, str] | None = None, config: Config = CONFIG) -> AsyncIterator[tuple[Operator, int]]:
    port = free_port()
    operator = Operator(config, KINDS, lease, port)
    await operator.startup()
    try:
        yield operator, port
    finally:
        await operator.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def get(port: int, path: str) -> tuple[int, str]:
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


def event(kind: str | None) -> Any:
    item = body()
    item["metadata"]["resourceVersion"] = "1"
    return {"type": kind, "object": item}


async def test_the_cache_and_the_leader_have_the_configured_names() -> None:
    async with running(config=replace(CONFIG, names=Names(opaque=True, key=NAMES_KEY))) as (operator, _):
        await operator.resource_event(event=event(None))
        assert operator._resources.owners("users", OPAQUE.child_name("alice")) == ["alice"]
        assert FakeLeader.naming.child_name("alice") == OPAQUE.child_name("alice")


async def test_the_operator_is_ready_when_all_caches_are_complete() -> None:
    async with running() as (operator, port):
        await until(lambda: len(FakeApi.made[0].lists) == 2)
        assert await get(port, "/ready") == (
            503,
            '{"status":"not ready","reason":"the caches are not synchronized yet"}',
        )
        await operator.resource_event(event=event(None))
        async with asyncio.timeout(PATIENCE_S):
            while await get(port, "/ready") != (200, '{"status":"ready"}'):
                await asyncio.sleep(0.01)


async def test_all_children_are_watched_by_their_labels() -> None:
    async with running():
        await until(lambda: len(FakeApi.made[0].lists) == 2)
        assert sorted(FakeApi.made[0].lists, key=lambda each: each[0]) == [
            ("secrets", "users", {"app.kubernetes.io/managed-by": "userrealtime-operator"}),
            ("services", "users", {"app.kubernetes.io/managed-by": "userrealtime-operator"}),
        ]


async def test_the_only_replica_leads_without_a_lease() -> None:
    async with running():
        [api] = FakeApi.made
        assert api.options["may_write"] is None
        await until(lambda: FakeLeader.terms == 1)


async def test_one_of_several_replicas_may_write_only_while_it_holds_the_lease() -> None:
    async with running(("platform", "operator")):
        lease_api, api = FakeApi.made
        assert lease_api is not api
        assert api.options["may_write"]() == 0
        assert FakeLeader.terms == 0


async def test_the_metrics_count_waiting_tasks() -> None:
    async with running() as (operator, port):
        await operator.resource_event(event=event("DELETED"))
        assert "userrealtime_operator_workqueue_depth 1.0" in (await get(port, "/metrics"))[1]


async def test_the_metrics_show_a_namespace_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    page, refused = FakeApi.page, True

    async def refuse(self: FakeApi, *arguments: Any) -> Object:
        if refused:
            raise ApiError(403, "forbidden")
        return await page(self, *arguments)

    monkeypatch.setattr(FakeApi, "page", refuse)
    sample = 'userrealtime_operator_namespace_available{served_namespace="users"}'
    async with running() as (operator, port):
        await operator.resource_event(event=event(None))
        async with asyncio.timeout(PATIENCE_S):
            while await get(port, "/ready") != (200, '{"status":"ready"}'):
                await asyncio.sleep(0.01)
        assert f"{sample} 0.0" in (await get(port, "/metrics"))[1]
        refused = False
        async with asyncio.timeout(PATIENCE_S):
            while f"{sample} 1.0" not in (await get(port, "/metrics"))[1]:
                await asyncio.sleep(0.01)


async def test_the_response_to_a_write_reaches_the_cache() -> None:
    async with running() as (operator, port):
        await operator.resource_event(event=event(None))
        item = event(None)["object"]
        item["metadata"]["resourceVersion"] = "2"
        item["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
        FakeApi.made[0].options["on_stored"](item)
        _, metrics = await get(port, "/metrics")
        assert 'userrealtime_operator_resources{condition="Ready",status="True"} 1.0' in metrics


async def test_a_part_that_fails_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeLeader, "failure", ValueError("broken"))
    async with running() as (operator, _):
        await asyncio.wait_for(operator.stopped.wait(), PATIENCE_S)


def test_kopf_writes_nothing() -> None:
    settings = framework_settings()
    assert settings.peering.standalone
    assert settings.scanning.disabled
    assert not settings.posting.enabled
