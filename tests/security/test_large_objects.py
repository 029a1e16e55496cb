"""An account that creates resources, or objects with the operator's labels: it cannot fill the operator's memory."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from testing.operator.names import NAMES
from testing.operator.samples import body
from userrealtime_operator.kube.client import CHILD_KINDS, MAX_PAGE_BYTES, PAGE, Api
from userrealtime_operator.kube.store import MAX_ANNOTATION_BYTES, MAX_OBJECT_BYTES, ObjectStore
from userrealtime_operator.kube.types import ObjectKey
from userrealtime_operator.model.labels import TOKEN_KEY_ROTATION_ANNOTATION
from userrealtime_operator.reconcile.resources import MAX_ANNOTATION, MAX_MANAGERS, Resources

LONG = "x" * 260_000
"""Nearly all that the API server accepts as the annotations of an object."""


def test_annotations_of_resources_are_not_kept() -> None:
    resources = Resources(NAMES)
    tracemalloc.start()
    try:
        for number in range(200):
            item = body(f"user{number}")
            item["metadata"] |= {
                "resourceVersion": "1",
                "annotations": {"note": LONG + str(number), TOKEN_KEY_ROTATION_ANNOTATION: LONG},
                "labels": {f"label{index}": "x" * 63 for index in range(1000)},
                "managedFields": [{"manager": f"m{index}", "fieldsV1": {"f:x": LONG}} for index in range(100)],
            }
            resources.put(item)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 200 * 8_000
    found = resources.get(("users", "user7"))
    assert found is not None
    assert found["metadata"]["annotations"] == {TOKEN_KEY_ROTATION_ANNOTATION: "x" * MAX_ANNOTATION}
    assert len(found["metadata"]["managedFields"]) == MAX_MANAGERS


def stored(item: dict[str, Any]) -> dict[str, Any]:
    key = ObjectKey("Secret", "users", "urt-alice")
    store = ObjectStore()
    store.put(key, {"apiVersion": "v1", "kind": "Secret", **item})
    assert len(store._items[key][1]) <= MAX_OBJECT_BYTES
    found = store.get(key)
    assert found is not None
    return found


def test_of_annotations_the_operators_own_and_the_shortest_are_kept() -> None:
    own = {"userrealtime.dev/applied": "d" * 64}
    foreign = {f"n{number:04}": "x" * 10 for number in range(10_000)}
    metadata = {"name": "urt-alice", "resourceVersion": "1", "annotations": {"note": LONG, **foreign, **own}}
    kept = stored({"metadata": metadata})["metadata"]["annotations"]
    assert own.items() <= kept.items()
    assert "note" not in kept
    assert len(kept) > 100
    assert sum(len(name) + len(value) for name, value in kept.items()) <= MAX_ANNOTATION_BYTES


def test_of_a_large_object_only_the_identity_is_kept() -> None:
    owner = {"kind": "UserRealtime", "uid": "u", "controller": True}
    others = [{"kind": "ConfigMap", "uid": str(number)} for number in range(5_000)]
    metadata = {"name": "urt-alice", "namespace": "users", "resourceVersion": "1", "ownerReferences": [*others, owner]}
    assert stored({"metadata": metadata, "data": {"key": "x" * 1_000_000}}) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {**metadata, "ownerReferences": [owner]},
        "spec": {},
    }


async def test_pages_of_large_objects_have_fewer_objects() -> None:
    """The operator does not read a hundred Secrets of a megabyte at once, and receives each object once."""
    sizes = [300] * 150 + [1_000_000] * 12 + [300] * 150
    items = [
        {"metadata": {"name": f"urt-{number}", "resourceVersion": "1"}, "data": {"key": "x" * size}}
        for number, size in enumerate(sizes)
    ]
    asked = []

    async def answer(request: web.Request) -> web.Response:
        first, count = int(request.query.get("continue", 0)), int(request.query["limit"])
        asked.append(count)
        end = first + count
        metadata = {"resourceVersion": "1", "continue": str(end) if end < len(items) else ""}
        return web.json_response({"metadata": metadata, "items": items[first:end]})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    names: list[str] = []
    try:
        async with Api(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")) as api:
            token, pages = "", 0
            while not pages or token:
                page = await api.page(*CHILD_KINDS["Secret"], "users", {}, token)
                token, pages = page["metadata"]["continue"], pages + 1
                assert len(page["items"]) == 1 or len(json.dumps(page["items"])) <= MAX_PAGE_BYTES
                names += [item["metadata"]["name"] for item in page["items"]]
    finally:
        await runner.cleanup()
    assert names == [item["metadata"]["name"] for item in items]
    assert asked[0] == asked[-1] == PAGE
    assert len(asked) < 40
