"""The chart's values for all users: how relays run, and when keys are replaced."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import jwt
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from testing.client import open_connection, receive
from testing.patience import PATIENCE_S, WITHIN
from testing.system import OPERATOR_NAMESPACE, RELEASE, System, upgrade
from userrealtime_operator.model.naming import CREDENTIALS_SUFFIX

from .test_credentials import secret_url

MakeUser = Callable[..., str]
RELAY = {
    "logLevel": "debug",
    "signal": "poll",
    "pollInterval": "250ms",
    "pingInterval": "15s",
    "allowedOrigins": ["https://app.example.com"],
    "auth": {"issuer": "https://issuer.example.com", "leeway": "0s"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "realtime", "operator": "Exists"}],
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "podLabels": {"team": "realtime"},
    "podAnnotations": {"example.com/scrape": "true"},
    "resources": {"requests": {"cpu": "0.01", "memory": "48Mi"}, "limits": {"memory": "131072Ki"}},
}
ISSUER = {"iss": RELAY["auth"]["issuer"]}  # type: ignore[index]
OVERLAP_S = 60


def refresh_s(system: System) -> float:
    """Return the time within which pods have a changed Secret: a kubelet's sync period, and half of it more."""
    return 1.5 * system.cluster.sync_s


def publish_ahead_s(system: System) -> float:
    """Return the time between the publication of a key and its first use: longer than pods wait for it."""
    return refresh_s(system) + 30


@pytest.fixture(scope="module")
def platform(system: System) -> Iterator[System]:
    """The system with a platform's settings; the earlier settings are restored afterwards."""
    values = {
        **system.values,
        "relay": {**system.values["relay"], **RELAY},
        # Only the Secrets that a test ages are a year old.
        "tokenKeys": {
            "overlap": f"{OVERLAP_S}s",
            "publishAhead": f"{publish_ahead_s(system)}s",
            "rotateAfter": "8760h",
        },
        "database": {**system.values["database"], "rotateAfter": "8760h"},
    }
    upgrade(system, values)
    yield system
    upgrade(system, system.values)


def pods(system: System, user: str) -> list[dict[str, Any]]:
    """Return the user's pods that are not terminating."""
    selector = f"app.kubernetes.io/instance={system.get('urt', user)['status']['name']}"
    found = json.loads(system.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def lives(system: System, user: str) -> list[tuple[str, int]]:
    """Return the uid and the restarts of each of the user's pods."""
    return [
        (pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]) for pod in pods(system, user)
    ]


def keys(system: System, user: str) -> dict[str, str]:
    """Return the token keys in the user's Secret."""
    data = system.get("secret", system.get("urt", user)["status"]["tokenSecret"]["name"])["data"]
    return {name: base64.b64decode(value).decode() for name, value in data.items() if name.startswith("TOKEN_KEY")}


def signed(key: str, user: str) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + 3600, **ISSUER}, key, algorithm="HS256")


async def is_accepted(url: str, token: str) -> bool:
    connection = await open_connection(url, token)
    try:
        await receive(connection)
    except ConnectionClosed:
        if connection.close_code != 1008:
            raise
        return False
    finally:
        await connection.close()
    return True


async def test_pods_run_as_the_platform_and_the_resource_say(platform: System, users: MakeUser) -> None:
    user = users("tuned", relay={"logLevel": "warning"}, limits={"messagesPerSecond": 2})
    [pod] = pods(platform, user)
    assert pod["metadata"]["labels"]["team"] == "realtime"
    assert pod["metadata"]["annotations"]["example.com/scrape"] == "true"
    assert pod["spec"]["nodeSelector"] == RELAY["nodeSelector"]
    assert any(toleration.get("key") == "realtime" for toleration in pod["spec"]["tolerations"])
    assert pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "userrealtime-relay"
    }
    [container] = pod["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": "128Mi"}}
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["LOG_LEVEL"] == "warning"
    url = platform.websocket_url(user)
    assert not await is_accepted(url, platform.token(user))
    assert await is_accepted(url, platform.token(user, **ISSUER))
    with pytest.raises(InvalidStatus, match="403"):
        await open_connection(url, platform.token(user, **ISSUER), origin="https://evil.example.com")
    connection = await open_connection(url, platform.token(user, **ISSUER), origin="https://app.example.com")
    await receive(connection)
    for number in range(3):
        await connection.send(json.dumps({"type": "publish", "ref": str(number), "event": "x"}))
    async with asyncio.timeout(PATIENCE_S):
        await connection.wait_closed()
    assert (connection.close_code, connection.close_reason) == (1013, "Too many messages")


PROBE = """
import json, os
files, writable = {}, []
for variable in ("TOKEN_KEY_DIR", "CREDENTIALS_DIR"):
    directory = os.environ[variable]
    files[variable] = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    try:
        open(os.path.join(directory, "x"), "w")
        writable.append(directory)
    except OSError:
        pass
print(json.dumps({"files": files, "writable": writable, "environment": dict(os.environ)}))
"""


def test_a_pod_has_its_secrets_as_files_alone(platform: System, users: MakeUser) -> None:
    user = users("mounted")
    [pod] = pods(platform, user)
    name = pod["metadata"]["name"]
    found = json.loads(platform.kubectl("exec", name, "--", "/app/venv/bin/python", "-c", PROBE))
    files = {"TOKEN_KEY_DIR": ["TOKEN_KEY"], "CREDENTIALS_DIR": ["DATABASE_URL"]}
    assert (found["files"], found["writable"]) == (files, [])
    environment = found["environment"]
    assert [name for name in environment if name.startswith("TOKEN_KEY")] == ["TOKEN_KEY_DIR"]
    assert "DATABASE_URL" not in environment
    password = urlsplit(secret_url(platform, user)).password
    assert password
    for secret in (password, *keys(platform, user).values()):
        assert secret not in json.dumps(environment)


def test_quantities_in_any_form_are_no_drift(platform: System, users: MakeUser) -> None:
    user = users("odd", relay={"resources": {"requests": {"cpu": "0.0105"}, "limits": {"memory": "0.125Gi"}}})
    name = platform.get("urt", user)["status"]["name"]
    container = platform.get("deployment", name)["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["requests"]["cpu"] == "11m"
    assert container["resources"]["limits"]["memory"] == "128Mi"

    def applied(kind: str) -> int:
        logs = platform.cluster.kubectl(
            "-n", OPERATOR_NAMESPACE, "logs", "--selector=app.kubernetes.io/name=userrealtime-operator", "--tail=-1"
        )
        return logs.count(f"applied {kind} users/{name}")

    # The Ingress is checked last: when it is repaired, the Deployment has been checked before.
    before = applied("Deployment"), applied("Ingress")
    platform.kubectl("patch", "ingress", name, "--type=merge", "-p", '{"spec": {"rules": [{"host": "elsewhere"}]}}')
    deadline = time.monotonic() + 30
    while applied("Ingress") == before[1]:
        assert time.monotonic() < deadline, "the Ingress was not put right"
        time.sleep(0.2)
    assert applied("Deployment") == before[0]


def ask_for_a_key(system: System, user: str) -> None:
    system.kubectl("annotate", "urt", user, "userrealtime.dev/rotate-token-key=1")


def make_old(system: System, user: str, since: str, suffix: str = "") -> None:
    """Give the contents of a user's Secret an old timestamp. The suffix is that of the Secret's name."""
    name = system.get("urt", user)["status"]["name"] + suffix
    system.kubectl("annotate", "--overwrite", "secret", name, f"userrealtime.dev/{since}=2020-01-02T03:04:05Z")


async def test_token_keys_are_replaced_when_asked_or_due_and_nobody_notices(
    platform: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    asked, due = users("asked"), users("due")
    before = {user: (lives(platform, user), keys(platform, user)) for user in (asked, due)}
    old = {user: await connect(platform, user, signed(keys(platform, user)["TOKEN_KEY"], user)) for user in before}
    ask_for_a_key(platform, asked)
    make_old(platform, due, "token-key-signs-since")
    async with asyncio.timeout(publish_ahead_s(platform) + OVERLAP_S + PATIENCE_S):
        found = await asyncio.gather(
            watch_keys(platform, asked, before[asked][1]),
            watch_keys(platform, due, before[due][1]),
            restart_operator_between(platform, asked),
        )
    for user, steps in zip((asked, due), found[:2], strict=True):
        first = before[user][1]["TOKEN_KEY"]
        new = steps[1]["TOKEN_KEY_NEXT"]
        assert steps == [
            {"TOKEN_KEY": first},
            {"TOKEN_KEY": first, "TOKEN_KEY_NEXT": new},
            {"TOKEN_KEY": new, "TOKEN_KEY_PREVIOUS": first},
            {"TOKEN_KEY": new},
        ]
        async with asyncio.timeout(refresh_s(platform) + 30):
            while await is_accepted(platform.websocket_url(user), signed(first, user)):
                await asyncio.sleep(1)
        # The client is still connected, and the pod is the same.
        await database.execute("select userrealtime.publish($1, 'after')", user)
        assert (await receive(old[user]))["event"] == "after"
        await old[user].close()
        assert await asyncio.to_thread(lives, platform, user) == before[user][0]


async def connect(system: System, user: str, token: str) -> ClientConnection:
    connection = await open_connection(system.websocket_url(user), token)
    await receive(connection)
    return connection


async def watch_keys(system: System, user: str, first: dict[str, str]) -> list[dict[str, str]]:
    """Return the states of the user's Secret until a key has replaced another.

    A new token is valid in each state, and the old one until the end of the overlap.
    """
    steps = [first]
    url, old_token = system.websocket_url(user), signed(first["TOKEN_KEY"], user)
    while len(steps) < 4:
        await asyncio.sleep(0.5)
        now = await asyncio.to_thread(keys, system, user)
        if now != steps[-1]:
            steps.append(now)
        assert await is_accepted(url, signed(now["TOKEN_KEY"], user)), steps
        if len(steps) < 4:
            assert await is_accepted(url, old_token), steps
    return steps


async def restart_operator_between(system: System, user: str) -> None:
    """An operator that starts during a rotation continues it."""
    while "TOKEN_KEY_NEXT" not in await asyncio.to_thread(keys, system, user):
        await asyncio.sleep(0.5)
    await asyncio.to_thread(restart_operator, system)


async def test_a_password_that_is_due_is_replaced_once(
    platform: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    user = users("old-password")
    before = secret_url(platform, user)
    old = await connect(platform, user, platform.token(user, **ISSUER))
    make_old(platform, user, "database-password-since", CREDENTIALS_SUFFIX)
    async with asyncio.timeout(PATIENCE_S):
        await old.wait_closed()  # its pod ends, and has announced it
    assert old.close_code == 1012
    await asyncio.to_thread(platform.wait_ready, user)
    after = secret_url(platform, user)
    assert urlsplit(after).username != urlsplit(before).username
    await database.execute("select userrealtime.publish($1, 'after')", user)
    again = await open_connection(platform.websocket_url(user), platform.token(user, **ISSUER), last_event_id=0)
    await receive(again)
    assert (await receive(again))["event"] == "after"
    await again.close()
    restart_operator(platform)
    assert secret_url(platform, user) == after


async def test_a_deleted_secret_ends_every_token_of_its_key(platform: System, users: MakeUser) -> None:
    user = users("revoked")
    url = platform.websocket_url(user)
    [(pod, _)] = lives(platform, user)
    old_token = platform.token(user, **ISSUER)
    assert await is_accepted(url, old_token)
    name = platform.get("urt", user)["status"]["name"]
    await asyncio.to_thread(platform.kubectl, "delete", "secret", name, WITHIN)
    async with asyncio.timeout(PATIENCE_S):
        while [uid for uid, _ in await asyncio.to_thread(lives, platform, user)] in ([], [pod]):
            await asyncio.sleep(0.5)
    await asyncio.to_thread(platform.wait_ready, user)

    async def answers(token: str, accepted: bool) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                # The ingress may still send to the old pod, which is being replaced.
                with contextlib.suppress(InvalidStatus):
                    if await is_accepted(url, token) == accepted:
                        return
                await asyncio.sleep(0.5)

    await answers(platform.token(user, **ISSUER), True)
    await answers(old_token, False)


def restart_operator(system: System) -> None:
    system.cluster.kubectl("-n", OPERATOR_NAMESPACE, "rollout", "restart", f"deployment/{RELEASE}")
    system.cluster.wait_rolled_out(OPERATOR_NAMESPACE, f"deployment/{RELEASE}")
