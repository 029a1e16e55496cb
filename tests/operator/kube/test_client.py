"""The client of the API server, and the watch of the children, against a server whose responses the tests define.

These tests cover what a real server does rarely: to reject a request temporarily, to abort a response, to forget a
version. The tests in `e2e` cover the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from testing.operator.tls import Endpoint, numb_server
from testing.patience import PATIENCE_S
from userrealtime_operator.kube.client import CHILD_KINDS, CLUSTER, LEASE_UID, Api, ApiError
from userrealtime_operator.kube.reflector import Reflector
from userrealtime_operator.kube.store import KindStore, ObjectStore
from userrealtime_operator.kube.types import Object, ObjectKey

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
SERVICES = "/api/v1/namespaces/users/services"


class Script:
    """An API server that gives one answer after the other, and keeps the requests. The last answer is repeated."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def port(script: Script) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.fixture
async def api(port: int) -> AsyncIterator[Api]:
    async with Api(Configuration(host=f"http://127.0.0.1:{port}")) as api:
        yield api


def says(status: int, body: Any = None, **headers: str) -> Answer:
    async def answer(_request: web.Request) -> web.StreamResponse:
        text = body if isinstance(body, str) else json.dumps(body or {})
        return web.Response(
            status=status, text=text, headers={name.replace("_", "-"): headers[name] for name in headers}
        )

    return answer


async def breaks_off(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def streams(*events: Object | str, then: Answer | None = None) -> Answer:
    """Return a handler for a watch that sends these events, and then ends or continues with `then`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for event in events:
            await response.write((event if isinstance(event, str) else json.dumps(event) + "\n").encode())
        if then is not None:
            await then(request)
        return response

    return answer


async def stays(_request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


def service(name: str, version: int) -> Object:
    return {"metadata": {"name": name, "namespace": "users", "resourceVersion": str(version)}}


def event(kind: str, name: str, version: int) -> Object:
    return {"type": kind, "object": {"apiVersion": "v1", "kind": "Service", **service(name, version)}}


def page(version: int, names: Sequence[str], more: str = "") -> Answer:
    return says(
        200,
        {
            "metadata": {"resourceVersion": str(version), "continue": more},
            "items": [service(name, version) for name in names] or None,
        },
    )


@pytest.mark.parametrize(("header", "after"), [({"Retry_After": "7"}, 7.0), ({"Retry_After": "Wed"}, 0.0), ({}, 0.0)])
async def test_an_overloaded_server_says_for_how_long(
    script: Script, api: Api, header: dict[str, str], after: float
) -> None:
    script.answers = [says(429, "too many requests, please try again later", **header)]
    with pytest.raises(ApiError, match="too many requests") as caught:
        await api.apply({"kind": "Service", "metadata": {"namespace": "users", "name": "a"}})
    assert (caught.value.status, caught.value.after_s) == (429, after)


async def test_no_answer_is_bounded_however_long_it_asks_to_wait(script: Script, api: Api) -> None:
    script.answers = [says(503, Retry_After="86400")]
    with pytest.raises(ApiError) as caught:
        await api.get("Secret", "users", "a")
    assert caught.value.after_s == 60.0


async def test_a_server_that_breaks_off_gives_no_answer(script: Script, api: Api) -> None:
    script.answers = [breaks_off]
    with pytest.raises(ApiError, match="no answer") as caught:
        await api.get("Secret", "users", "a")
    assert caught.value.status == 0


async def test_on_stored_receives_each_written_object(script: Script, port: int) -> None:
    written: list[Object] = []
    stored = {"kind": "Service", **service("a", 3)}
    script.answers = [says(200, stored)]
    async with Api(Configuration(host=f"http://127.0.0.1:{port}"), on_stored=written.append) as api:
        assert await api.apply({"kind": "Service", "metadata": {"namespace": "users", "name": "a"}}) == stored
    assert written == [stored]


async def test_no_write_starts_unless_it_may(script: Script, port: int) -> None:
    async with Api(Configuration(host=f"http://127.0.0.1:{port}"), may_write=lambda: 0.0) as api:
        with pytest.raises(ApiError, match="lease"):
            await api.delete("Service", "users", "a")
    assert script.requests == []


async def test_uids_come_in_pages(script: Script, api: Api) -> None:
    def uids(uid: str, more: str) -> Answer:
        return says(200, {"metadata": {"continue": more}, "items": [{"metadata": {"uid": uid}}]})

    script.answers = [uids("one", "go on/&"), uids("two", "")]
    assert await api.uids("v1", "services", "users") == {"one", "two"}
    assert script.requests[1].query["continue"] == "go on/&"


@contextlib.asynccontextmanager
async def reflected(script: Script, api: Api, *answers: Answer) -> AsyncIterator[tuple[ObjectStore, list[str]]]:
    """Run a cache until all responses were sent; yield it, and the names of the objects that have changed."""
    children, news = ObjectStore(), list[str]()
    store = KindStore(children, "Service", CHILD_KINDS["Service"], "users", lambda key: news.append(key.name))
    reflector = Reflector(api, CHILD_KINDS["Service"], "users", {"app.kubernetes.io/a": "b"}, store)
    script.answers = [*answers, streams(then=stays)]
    task = asyncio.create_task(reflector.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while len(script.requests) <= len(answers):
                await asyncio.sleep(0.01)
        assert reflector.has_synced
        yield children, news
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def names(children: ObjectStore) -> list[str]:
    return sorted(name for _, _, name in children)


async def test_children_are_listed_in_pages_and_then_watched(script: Script, api: Api) -> None:
    watch = streams(event("ADDED", "c", 6), event("MODIFIED", "a", 7), event("DELETED", "b", 8))
    async with reflected(script, api, page(5, ["a"], more="next"), page(5, ["b"]), watch) as (children, news):
        assert names(children) == ["a", "c"]
        assert news == ["a", "b", "c", "a", "b"]
        found = children.get(ObjectKey("Service", "users", "a"))
        assert found is not None
        assert (found["apiVersion"], found["kind"], found["metadata"]["resourceVersion"]) == ("v1", "Service", "7")
        assert [request.query.get("continue") for request in script.requests[:2]] == [None, "next"]
        assert script.requests[2].query["resourceVersion"] == "5"
        assert all(request.query["labelSelector"].startswith("app.kubernetes.io/") for request in script.requests)


@pytest.mark.parametrize("broken", [[], ['{"type": "MOD'], [event("BOOKMARK", "", 9)]], ids=["end", "half", "bookmark"])
@pytest.mark.parametrize("refusal", [breaks_off, says(429, Retry_After="0")], ids=["no answer", "overloaded"])
async def test_a_watch_that_breaks_goes_on_from_where_it_was(
    script: Script, api: Api, broken: list[Any], refusal: Answer
) -> None:
    watch = streams(event("ADDED", "a", 6), *broken)
    async with reflected(script, api, page(5, []), watch, refusal) as (children, _):
        assert names(children) == ["a"]
        last = "9" if broken and "BOOKMARK" in str(broken) else "6"
        assert [request.query.get("resourceVersion") for request in script.requests] == [None, "5", last, last]


GONE = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}


@pytest.mark.parametrize("gone", [streams(GONE), says(410, {"message": "too old"})], ids=["in the stream", "at once"])
async def test_a_place_that_is_forgotten_is_listed_anew(script: Script, api: Api, gone: Answer) -> None:
    async with reflected(script, api, page(5, ["a", "b"]), gone, page(9, ["b", "c"])) as (children, news):
        assert names(children) == ["b", "c"]
        assert sorted(news[2:]) == ["a", "b", "c"]


async def test_a_list_that_fails_is_tried_again_from_its_first_page(script: Script, api: Api) -> None:
    first = page(5, ["a"], more="next")
    answers = says(500), first, says(410, {"message": "continue token expired"}), first, page(5, ["b"])
    async with reflected(script, api, *answers) as (children, _):
        assert names(children) == ["a", "b"]


def test_a_watch_that_is_given_up_leaves_no_connection_behind(authority: Path) -> None:
    """A server that does not answer the TLS shutdown would keep the connection open after the client is closed."""

    async def watch_a_while(endpoint: Endpoint) -> None:
        configuration = Configuration(host=endpoint.url)
        configuration.ssl_ca_cert = str(endpoint.certificate)
        async with (
            Api(configuration) as api,
            contextlib.aclosing(api.watch("v1", "services", "users", {}, "5", 60)) as watch,
        ):
            assert (await anext(watch))[0] == "ADDED"

    line = json.dumps(event("ADDED", "a", 6)).encode() + b"\n"
    with numb_server(authority, line) as endpoint, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        asyncio.run(watch_a_while(endpoint))
        gc.collect()
    assert [warning.message for warning in said if issubclass(warning.category, ResourceWarning)] == []


class LeaseApi(Api):
    """Returns the written object instead of sending it."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster

    async def _request(
        self,
        method: str,
        path: str,
        body: Object | str | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        most: int | None = None,
    ) -> Object:
        assert isinstance(body, dict)
        return body


@pytest.mark.parametrize(("uid", "identity"), [("1", "old"), ("2", "new")], ids=["own", "restored elsewhere"])
async def test_a_lease_keeps_the_identity_of_its_cluster(uid: str, identity: str) -> None:
    """A rotation of the authority changes `cluster`. A Lease that is restored elsewhere has another uid."""
    annotations = {CLUSTER: "old", LEASE_UID: "1", "theirs": "x"}
    previous = {"metadata": {"uid": uid, "resourceVersion": "7", "annotations": annotations, "labels": {"a": "b"}}}
    stored = await LeaseApi("new").put_lease("users", "operator", previous, {"holderIdentity": "me"})
    assert stored["metadata"]["annotations"] == {CLUSTER: identity, LEASE_UID: uid, "theirs": "x"}
    assert stored["metadata"]["labels"] == {"a": "b"}
    assert stored["metadata"]["resourceVersion"] == "7"


async def test_a_new_lease_has_no_identity_before_it_has_a_uid() -> None:
    stored = await LeaseApi("new").put_lease("users", "operator", None, {})
    assert CLUSTER not in stored["metadata"]["annotations"]
