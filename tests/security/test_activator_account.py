"""An attacker with the activator's service account. With sealed keys, it reads resources and pods, and no Secret."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml

from testing.operator.fixture import SECRET, ReconcilerFixture
from testing.operator.names import child_name
from testing.operator.samples import CONFIG
from testing.relay.harness import token
from testing.system import ROOT
from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_core.auth.sealed_keys import Seal
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_operator.activator.cluster import ApiCluster
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.routes import Route, RouteTable
from userrealtime_operator.activator.tokens import Tokens
from userrealtime_operator.config import Activator, Config
from userrealtime_operator.kube.client import Api
from userrealtime_operator.kube.types import NamespacedName, Object
from userrealtime_operator.model.resource import SEALED_KEYS

KEY = "the key of the seal, which has enough bytes"
UNSEALED = replace(CONFIG, activator=Activator(namespace="userrealtime", service="activator"))


def sealed(key: str = KEY) -> Config:
    return replace(
        CONFIG, activator=Activator(namespace="userrealtime", service="activator", sealed_keys=True, seal_key=key)
    )


class NoSecrets(Api):
    """An API server at which the activator has no permission to read Secrets."""

    def __init__(self) -> None:
        pass

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        raise AssertionError(f"read {kind} {name}")


class Activated:
    """An activator that watches the resources of a reconciler."""

    def __init__(self, world: ReconcilerFixture, key: str = KEY) -> None:
        self._world = world
        self.routes = RouteTable()
        self.cluster = ApiCluster(NoSecrets(), self.routes, Metrics(), Seal(key))
        self.tokens = Tokens(RelaySettings.from_environment({}), self.cluster.secret)
        self.observe()

    def observe(self, **status: str) -> None:
        item = self._world.api.resources["users", "alice"]
        metadata = {"resourceVersion": "1", **item["metadata"]}
        self.cluster.requests.put({**item, "metadata": metadata, "status": {**item["status"], **status}})

    async def check(self, presented: str) -> None:
        await self.tokens.check(Route(NamespacedName("users", "alice"), "alice", "", child_name("alice")), presented)


def keys_of(world: ReconcilerFixture) -> Mapping[str, str]:
    data = world.api.children[SECRET]["data"]
    return {name: base64.b64decode(value).decode() for name, value in data.items()}


def status_of(world: ReconcilerFixture) -> dict[str, Any]:
    found: dict[str, Any] = world.api.resources["users", "alice"]["status"]
    return found


@pytest.fixture
async def world() -> ReconcilerFixture:
    world = ReconcilerFixture()
    world.restart(sealed())
    await world.reconcile()
    return world


async def test_the_activator_verifies_tokens_without_reading_a_secret(world: ReconcilerFixture) -> None:
    activated = Activated(world)
    await activated.check(token(key=keys_of(world)["TOKEN_KEY"]))
    with pytest.raises(Unauthorized):
        await activated.check(token(key="a stranger's key that is long enough"))


async def test_the_status_does_not_disclose_the_keys(world: ReconcilerFixture) -> None:
    status = status_of(world)
    raw = base64.b64decode(status["sealedKeys"])
    for key in keys_of(world).values():
        assert key not in json.dumps(status)
        assert key.encode() not in raw
    # Without the key of the seal, an account that reads the status verifies and signs nothing.
    with pytest.raises(KeySetStale):
        await Activated(world, "another key, which has enough bytes too").check(token(key=keys_of(world)["TOKEN_KEY"]))


async def test_sealed_keys_are_written_when_they_change_and_only_then(world: ReconcilerFixture) -> None:
    first = status_of(world)["sealedKeys"]
    world.api.calls.clear()
    world.restart(sealed())
    await world.reconcile()
    assert "status" not in world.api.calls
    activated, old = Activated(world), keys_of(world)["TOKEN_KEY"]
    await activated.check(token(key=old))
    del world.api.children[SECRET]  # the emergency procedure
    await world.reconcile()
    assert status_of(world)["sealedKeys"] != first
    activated = Activated(world)
    await activated.check(token(key=keys_of(world)["TOKEN_KEY"]))
    with pytest.raises(Unauthorized):
        await activated.check(token(key=old))


async def test_another_key_of_the_seal_replaces_the_sealed_keys(world: ReconcilerFixture) -> None:
    other = "another key, which has enough bytes too"
    world.restart(sealed(other))
    await world.reconcile()
    await Activated(world, other).check(token(key=keys_of(world)["TOKEN_KEY"]))


async def test_without_a_seal_the_status_has_no_keys(world: ReconcilerFixture) -> None:
    world.restart(UNSEALED)
    await world.reconcile()
    assert "sealedKeys" not in status_of(world)


@pytest.mark.parametrize("sealed_keys", ["", "AAAA", "of another resource"])
async def test_sealed_keys_that_cannot_be_opened_wake_nobody(world: ReconcilerFixture, sealed_keys: str) -> None:
    """The account can write the status, so it can also copy the keys of another resource, whose tokens it has."""
    if sealed_keys == "of another resource":
        sealed_keys = Seal(KEY).seal("uid-of-mallory", {"TOKEN_KEY": "mallory's key, which is long enough"})
    activated = Activated(world)
    activated.observe(sealedKeys=sealed_keys)
    with pytest.raises(KeySetStale):
        await activated.check(token(key="mallory's key, which is long enough"))


async def test_a_resource_without_sealed_keys_is_tried_again_later(world: ReconcilerFixture) -> None:
    """As after an upgrade, until the operator has written the status."""
    activated = Activated(world)
    keys = status_of(world).pop("sealedKeys")
    activated.observe()
    with pytest.raises(KeySetStale):
        await activated.check(token(key=keys_of(world)["TOKEN_KEY"]))
    activated.observe(sealedKeys=keys)
    await activated.check(token(key=keys_of(world)["TOKEN_KEY"]))


def test_the_api_server_keeps_the_field() -> None:
    """It drops fields that the CRD does not have, and the operator would write the status again and again."""
    crd = yaml.safe_load((ROOT / "crds" / "userrealtimes.yaml").read_text())
    status = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert status["properties"][SEALED_KEYS]["type"] == "string"
