"""What the environment of a pod, and a reader of one of a user's two Secrets, can learn."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from testing.operator.fixture import CREDENTIALS, SECRET, ReconcilerFixture
from testing.operator.samples import CONFIG, KEYS, SECRETS, by_part, resource
from userrealtime_operator.activator.tokens import keys_in
from userrealtime_operator.kube.types import Object
from userrealtime_operator.manifests.children import desired_objects
from userrealtime_operator.model import naming
from userrealtime_operator.model.notifiers import SignalDefaults, SignalType

BROKER = "nats://relay:hunter3@nats:4222"
WITH_BROKER = replace(CONFIG, signals=SignalDefaults(SignalType.NATS, BROKER))
ROTATING = replace(SECRETS, token_keys=replace(KEYS, next="next-key-" * 5))


def secret_values(item: Mapping[str, Any]) -> dict[str, str]:
    return {name: base64.b64decode(value).decode() for name, value in item["data"].items()}


def sources(value: object) -> Iterator[str]:
    """Yield the keys of all parts of an object that refer to another object."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from sources(part)
    elif isinstance(value, list):
        for part in value:
            yield from sources(part)


@pytest.fixture
def objects() -> dict[str, Object]:
    return by_part(desired_objects(resource(), WITH_BROKER, ROTATING))


def test_the_environment_of_a_pod_contains_no_secret(objects: dict[str, Object]) -> None:
    keys, urls = secret_values(objects["Secret"]), secret_values(objects[naming.CREDENTIALS])
    assert urls == {"DATABASE_URL": CONFIG.database_url, "NATS_URL": BROKER}
    assert keys.keys() == {"TOKEN_KEY", "TOKEN_KEY_NEXT"}
    [container] = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert "envFrom" not in container
    assert not {"secretKeyRef", "secretRef", "configMapKeyRef"} & set(sources(container["env"]))
    assert not (keys | urls).keys() & {entry["name"] for entry in container["env"]}
    text = json.dumps(container)
    for value in (keys | urls).values():
        assert value not in text
        assert base64.b64encode(value.encode()).decode() not in text


def test_each_secret_is_mounted_read_only_in_a_directory_of_its_own(objects: dict[str, Object]) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    volumes = [volume for volume in pod["volumes"] if "secret" in volume]
    mounted = {volume["secret"]["secretName"]: mounts[volume["name"]] for volume in volumes}
    name = resource().child_name
    assert mounted.keys() == {name, f"{name}-credentials"}
    assert all(mount["readOnly"] for mount in mounted.values())
    assert len({mount["mountPath"] for mount in mounted.values()}) == 2


def test_the_secret_that_the_activator_reads_contains_no_url(objects: dict[str, Object]) -> None:
    assert KEYS.current in keys_in(objects["Secret"])()
    values = secret_values(objects["Secret"])
    assert not any("://" in value for value in values.values())
    # Nor do the annotations, and the other Secret has no key of tokens.
    assert "hunter" not in json.dumps(objects["Secret"])
    assert not keys_in(objects[naming.CREDENTIALS])()


async def test_a_url_in_the_secret_with_the_keys_is_removed() -> None:
    world = ReconcilerFixture()
    await world.reconcile()
    url = base64.b64encode(CONFIG.database_url.encode()).decode()
    world.api.children[SECRET]["data"]["DATABASE_URL"] = url
    await world.reconcile()
    assert world.api.children[SECRET]["data"].keys() == {"TOKEN_KEY"}
    assert world.api.children[CREDENTIALS]["data"] == {"DATABASE_URL": url}
