"""The installed command `userrealtime`, with a kubeconfig."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from testing.client import open_connection, receive
from testing.patience import COMMAND_TIMEOUT_S, PATIENCE_S
from testing.system import USERS_NAMESPACE, System
from testing.waiting import eventually

MakeUser = Callable[..., str]
SCRIPTS = Path(sys.executable).parent
EXPLAINED = "run `make venv`: the scripts of the project are not installed"


def run(system: System, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**system.cluster.environment(), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )


async def greeting(url: str, token: str) -> str:
    connection = await open_connection(url.replace("http", "ws", 1) + "/ws", token)
    try:
        user_id: str = (await receive(connection))["userId"]
        return user_id
    finally:
        await connection.close()


@pytest.mark.parametrize("by", ["name", "user id"])
async def test_a_token_opens_the_users_socket(system: System, users: MakeUser, by: str) -> None:
    user_id = f"Jörg {os.getpid()} {by}"
    name = users("cli", userId=user_id)
    assert (SCRIPTS / "userrealtime").exists(), EXPLAINED
    who = (name,) if by == "name" else ("--user-id", user_id)
    command = (SCRIPTS / "userrealtime", "--namespace", USERS_NAMESPACE, "token", *who, "--url")
    done = await asyncio.to_thread(run, system, *command)
    assert (done.returncode, done.stderr) == (0, "")
    token, url = done.stdout.splitlines()
    assert await greeting(url, token) == user_id


async def test_it_is_a_plugin_of_kubectl(system: System, users: MakeUser) -> None:
    name = users("plugin")
    assert (SCRIPTS / "kubectl-userrealtime").exists(), EXPLAINED
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    command = (system.cluster.kubectl_path(), "userrealtime", "-n", USERS_NAMESPACE, "token", name, "--url")
    done = await asyncio.to_thread(run, system, *command, PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    token, url = done.stdout.splitlines()
    assert await greeting(url, token) == name


async def test_events_are_followed_and_messages_published(
    system: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    name = users("tail")
    await database.execute(
        "select userrealtime.publish($1, 'order.paid', jsonb_build_object('n', n)) from generate_series(1, 3) n", name
    )
    command = (SCRIPTS / "userrealtime", "--namespace", USERS_NAMESPACE)
    for transport in ("websocket", "sse", "poll"):
        options = ("--after", "0", "--count", "3", "--transport", transport, "--timeout", f"{PATIENCE_S:.0f}s")
        done = await asyncio.to_thread(run, system, *command, "tail", name, *options)
        assert (done.returncode, done.stderr) == (0, f"connected by {transport}\n")
        assert [json.loads(line)["data"]["n"] for line in done.stdout.splitlines()] == [1, 2, 3]
    arguments = ("publish", name, "--event", "note.added", "--data", '{"by": "hand"}')
    done = await asyncio.to_thread(run, system, *command, *arguments)
    assert done.returncode == 0, done.stderr
    stored = await database.fetchrow("select * from userrealtime.inbox where user_id = $1", name)
    assert stored is not None
    assert (stored["id"], stored["event"]) == (int(done.stdout), "note.added")
    assert json.loads(stored["data"]) == {"by": "hand"}


def test_the_doctor_finds_what_is_wrong(system: System, users: MakeUser) -> None:
    def examine(name: str) -> tuple[int, str]:
        done = run(system, SCRIPTS / "userrealtime", "--namespace", USERS_NAMESPACE, "doctor", name)
        assert done.stderr == ""
        return done.returncode, done.stdout

    name = users("doctor")
    status, out = examine(name)
    assert (status, out.splitlines()[-1]) == (0, "no problems found"), out
    assert {line.partition(":")[0].split()[-1] for line in out.splitlines()[:-1]} == {
        *("resource", "operator", "database", "pod", "key", "route", "token", "websocket", "sse")
    }

    def patch(spec: str) -> None:
        system.kubectl("patch", "urt", name, "--type=merge", "-p", f'{{"spec": {spec}}}')

    patch('{"relay": {"image": "nowhere.invalid/relay:1"}}')
    eventually(lambda: "note   new pod: ImagePullFailed" in examine(name)[1], "the doctor reports the image")
    status, out = examine(name)
    assert status == 0, out  # the old pod serves
    assert "correct spec.relay.image" in out
    patch('{"relay": {"image": null}, "route": {"enabled": false}}')
    eventually(lambda: "error  route: " in examine(name)[1], "the doctor reports the route")
    status, out = examine(name)
    assert status == 1
    assert f"{name} has no URL" in out
    status, out = examine("nobody-of-this-name")
    assert status == 1
    assert "there is no UserRealtime 'nobody-of-this-name'" in out


def test_what_stands_in_the_way_is_told(system: System, users: MakeUser, tmp_path: Path) -> None:
    name = users("told")

    def complaint(kubeconfig: Path, *arguments: str) -> str:
        options = ("-n", USERS_NAMESPACE, "--kubeconfig", str(kubeconfig))
        done = run(system, SCRIPTS / "userrealtime", *options, "token", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    assert "there is no UserRealtime 'nobody' in namespace users" in complaint(system.cluster.kubeconfig, "nobody")
    config = json.loads(system.cluster.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    token = system.kubectl("create", "token", "default", "--duration=10m").strip()
    for user in config["users"]:
        user["user"] = {"token": token}
    stranger = tmp_path / "kubeconfig"
    stranger.touch(mode=0o600)
    stranger.write_text(json.dumps(config))
    text = complaint(stranger, name)
    assert "permission denied" in text
    assert f"system:serviceaccount:{USERS_NAMESPACE}:default" in text
