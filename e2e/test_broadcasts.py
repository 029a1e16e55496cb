"""Broadcasts: from a client to those of the user's other pod, and from an application over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from testing.patience import PATIENCE_S, WITHIN
from testing.system import CHART, OPERATOR_NAMESPACE, RELEASE, USERS_NAMESPACE, System
from userrealtime_client import Broadcast, Client

from .test_replicas import pods

MakeUser = Callable[..., str]
HTTP_PORT: Final = 8080
REPEAT_S: Final = 0.2
"""Seconds between two attempts: a relay begins to listen for broadcasts some time after its start."""


async def heard(client: Client, event: str) -> Any:
    """Return the data of the next broadcast with this name."""
    async for message in client:
        if isinstance(message, Broadcast) and message.event == event:
            return message.data
    raise AssertionError("the client has ended")


async def test_a_broadcast_of_a_client_reaches_the_clients_of_the_other_pod(system: System, users: MakeUser) -> None:
    alice = await asyncio.to_thread(lambda: users("alice", replicas=2, limits={"broadcastsPerSecond": 50}))
    path = urlsplit(system.get("urt", alice)["status"]["url"]).path
    token = system.token(alice)
    async with contextlib.AsyncExitStack() as stack:
        clients: list[Client] = []
        for pod in await asyncio.to_thread(pods, system, alice):
            forwarding = system.cluster.forward(USERS_NAMESPACE, f"pod/{pod}", HTTP_PORT)
            host, port = await asyncio.to_thread(stack.enter_context, forwarding)
            client = Client(f"http://{host}:{port}{path}", token=token, broadcasts=True)
            clients.append(await stack.enter_async_context(client))
        one, two = clients
        for sender, receiver, event in ((one, two, "typing"), (two, one, "reply")):
            hearing = asyncio.create_task(heard(receiver, event))
            async with asyncio.timeout(PATIENCE_S):
                while not hearing.done():
                    sender.broadcast(event, {"by": event})
                    await asyncio.wait([hearing], timeout=REPEAT_S)
            assert hearing.result() == {"by": event}


async def test_an_application_sends_a_broadcast_over_http(system: System, users: MakeUser) -> None:
    """The objects of the chart are applied beside the release, which has no broadcast API."""
    alice = await asyncio.to_thread(users, "alice")
    secret, key = f"broadcasting-{secrets.token_hex(3)}", secrets.token_hex(32)
    values = {**system.values, "broadcast": {"http": {"enabled": True, "existingSecret": {"name": secret}}}}
    name = f"{RELEASE}-broadcast-api"

    def kubectl(*arguments: str) -> str:
        return system.cluster.kubectl("-n", OPERATOR_NAMESPACE, *arguments)

    def deploy() -> list[str]:
        template = ("template", RELEASE, str(CHART), "--namespace", OPERATOR_NAMESPACE, "--values", "-")
        rendered = yaml.safe_load_all(system.cluster.helm(*template, input=json.dumps(values)))
        objects = [item for item in rendered if item and item["metadata"]["name"] == name]
        assert objects
        metadata = {"name": secret, "namespace": OPERATOR_NAMESPACE}
        content = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"BROADCAST_TOKEN": key}}
        system.cluster.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": [content, *objects]}))
        return [f"{item['kind'].lower()}/{item['metadata']['name']}" for item in (content, *objects)]

    def post(host: str, port: int, bearer: str) -> int:
        body = json.dumps({"userId": alice, "event": "job.progress", "data": {"percent": 40}}).encode()
        request = urllib.request.Request(f"http://{host}:{port}/broadcast", body, {"Authorization": f"Bearer {bearer}"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    made = await asyncio.to_thread(deploy)
    try:
        await asyncio.to_thread(kubectl, "rollout", "status", f"deployment/{name}", WITHIN)
        url, token = system.get("urt", alice)["status"]["url"], system.token(alice)
        with system.cluster.forward(OPERATOR_NAMESPACE, f"svc/{name}", 80) as (host, port):
            assert await asyncio.to_thread(post, host, port, "another token") == 401
            async with Client(url, token=token, broadcasts=True) as client, asyncio.timeout(PATIENCE_S):
                hearing = asyncio.create_task(heard(client, "job.progress"))
                while not hearing.done():
                    assert await asyncio.to_thread(post, host, port, key) == 202
                    await asyncio.wait([hearing], timeout=REPEAT_S)
                assert hearing.result() == {"percent": 40}
    finally:
        await asyncio.to_thread(kubectl, "delete", "--ignore-not-found", "--wait=false", *made)
