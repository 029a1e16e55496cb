"""The clients from npm, unmodified, that connect while their user sleeps: the activator serves them until the wake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testing.clients.fixture import ClientFixture
from testing.clients.javascript import install_locked
from testing.local.postgres import LocalPostgres
from testing.operator.activator import FakeCluster, gate

from . import test_actioncable_clients, test_pusher_clients, test_socketio_clients, test_supabase_clients

BASE_PATH = "/urt-alice-1234"


@asynccontextmanager
async def asleep(server: LocalPostgres, protocol: str) -> AsyncIterator[tuple[ClientFixture, FakeCluster]]:
    """A stage whose user sleeps: the link leads to an activator, and the relay is the pod after the wake."""
    variables = {"PROTOCOLS": protocol, "BASE_PATH": BASE_PATH}
    relay = {**variables, "ALLOWED_ORIGINS": "*"}
    async with (
        ClientFixture(server, MAX_BROADCASTS_PER_SECOND="0", **variables) as stage,
        gate(server.url(stage.database), port=stage.relay.port, path=BASE_PATH, relay=relay) as (opened, cluster, _),
    ):
        stage.link = SimpleNamespace(port=opened.port)  # type: ignore[assignment]
        stage.url = f"http://127.0.0.1:{opened.port}{BASE_PATH}"
        yield stage, cluster


def installed(module: Any, factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the script of the tests of one protocol, and the packages that it needs."""
    return install_locked(module.SOURCE, factory.mktemp("clients") / "application")


@pytest.mark.parametrize("auth", ["handler", "endpoint", "signature"])
async def test_pusher(postgres_server: LocalPostgres, tmp_path_factory: pytest.TempPathFactory, auth: str) -> None:
    folder = installed(test_pusher_clients, tmp_path_factory)
    async with (
        asleep(postgres_server, "pusher") as (stage, cluster),
        test_pusher_clients.application(stage, folder, auth=auth) as alice,
    ):
        await alice.has("subscribed")
        await alice.event(await stage.publish())
        assert cluster.wakes > 0
        states = [line["state"] for line in alice.lines if "state" in line]
        assert states in (["connected"], ["connecting", "connected"]), "one attempt"


@test_socketio_clients.transports
async def test_socketio(
    postgres_server: LocalPostgres, tmp_path_factory: pytest.TempPathFactory, transports: list[str]
) -> None:
    folder = installed(test_socketio_clients, tmp_path_factory)
    async with (
        asleep(postgres_server, "socketio") as (stage, cluster),
        test_socketio_clients.application(stage, folder, transports=transports) as alice,
    ):
        await alice.has("connected")
        if not transports and not any("upgraded" in line for line in alice.lines):
            await alice.has("upgraded")
        await alice.event(await stage.publish())
        assert not any("refused" in line or "disconnected" in line for line in alice.lines), alice.lines
        assert cluster.wakes > 0


async def test_socketio_with_a_wrong_token(
    postgres_server: LocalPostgres, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = installed(test_socketio_clients, tmp_path_factory)
    async with (
        asleep(postgres_server, "socketio") as (stage, cluster),
        test_socketio_clients.application(stage, folder, token="wrong") as alice,
    ):
        refused = await alice.has("refused")
        assert refused["refused"].startswith("Unauthorized")
        assert not refused["active"]
        assert cluster.wakes == 0


@pytest.mark.parametrize("client", test_supabase_clients.CLIENTS)
async def test_supabase(postgres_server: LocalPostgres, tmp_path_factory: pytest.TempPathFactory, client: str) -> None:
    folder = installed(test_supabase_clients, tmp_path_factory)
    async with (
        asleep(postgres_server, "supabase") as (stage, cluster),
        test_supabase_clients.application(stage, folder, client) as alice,
    ):
        await alice.status("SUBSCRIBED")
        await alice.event(await stage.publish())
        assert cluster.wakes == 1


@pytest.mark.parametrize("client", test_actioncable_clients.CLIENTS)
async def test_actioncable(
    postgres_server: LocalPostgres, tmp_path_factory: pytest.TempPathFactory, client: str
) -> None:
    folder = installed(test_actioncable_clients, tmp_path_factory)
    async with (
        asleep(postgres_server, "actioncable") as (stage, cluster),
        test_actioncable_clients.cable(stage, folder, client, strategy="sub-protocol") as alice,
    ):
        await alice.connected()
        await alice.event(await stage.publish())
        assert cluster.wakes == 1
