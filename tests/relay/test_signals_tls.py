"""Signals over TLS from real brokers; a relay sends nothing to an unverified broker."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from testing.cluster.local import pki
from testing.database import Database
from testing.local.brokers import BROKERS, LocalBroker
from testing.relay.brokers import PASSWORD, following, make_broker
from testing.relay.harness import PATIENCE_S, publish, receive_ids, until
from userrealtime_core.secret import Secret
from userrealtime_core.trust import reloading
from userrealtime_relay.notify import Unreachable
from userrealtime_relay.notify.broker import load


@pytest.fixture(params=BROKERS)
async def broker(request: pytest.FixtureRequest, authority: Path) -> AsyncIterator[LocalBroker]:
    async with make_broker(request.param, PASSWORD, authority) as broker:
        yield broker


@pytest.fixture(params=BROKERS)
async def broker_of_any(request: pytest.FixtureRequest, any_authority: Path) -> AsyncIterator[LocalBroker]:
    async with make_broker(request.param, PASSWORD, any_authority) as broker:
        yield broker


async def refusal(name: str, url: str) -> str:
    """Return the reason why the broker at a URL cannot be used."""
    with pytest.raises(Unreachable) as refused:
        async with asyncio.timeout(PATIENCE_S):
            await load(name).subscribe(Secret(url), "alice", lambda _: None)
    with pytest.raises(Unreachable):
        async with asyncio.timeout(PATIENCE_S), load(name).publishing(Secret(url)):
            pass
    return str(refused.value)


async def test_events_arrive_if_the_authority_is_trusted(
    migrated: Database,
    connection: asyncpg.Connection,
    broker_of_any: LocalBroker,
    any_authority: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert broker_of_any.url.startswith(("tls:", "rediss:", "kafka+tls:"))
    monkeypatch.setenv("SSL_CERT_FILE", str(any_authority / "ca.crt"))
    async with following(migrated.url, broker_of_any) as (_, alice):
        await publish(connection, 3)
        assert await receive_ids(alice, 3) == [1, 2, 3]


@pytest.mark.parametrize("name", BROKERS)
async def test_the_authority_of_a_broker_is_replaced_while_relay_and_bridge_run(
    name: str,
    migrated: Database,
    connection: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new, served = (tmp_path / folder for folder in ("old", "new", "served"))
    for folder in (old, new):
        pki.make(folder, [pki.Identity("server", "/CN=server", ("IP:127.0.0.1",))])
    shutil.copytree(old, served)
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes((old / "ca.crt").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    monkeypatch.setattr("userrealtime_relay.notify.kafka.reloading", lambda: reloading(0.05))
    async with make_broker(name, PASSWORD, served) as broker, following(migrated.url, broker) as (_, alice):
        await publish(connection)
        assert await receive_ids(alice, 1) == [1]
        # Half way through a rotation, both authorities are in the file. Then the broker has the new certificate.
        trusted.write_bytes((old / "ca.crt").read_bytes() + (new / "ca.crt").read_bytes())
        await broker.kill()
        shutil.copytree(new, served, dirs_exist_ok=True)
        await broker.start()
        await publish(connection)
        assert await receive_ids(alice, 2) == [2]


async def test_a_broker_of_another_authority_or_name_is_refused(
    broker: LocalBroker, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = await refusal(broker.name, broker.url)
    if broker.name != "kafka":  # its client reports the reason only in its log
        assert "certificate verify failed" in said
    assert PASSWORD not in said
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.crt"))
    said = await refusal(broker.name, broker.url.replace("127.0.0.1", "localhost"))
    assert broker.name == "kafka" or "localhost" in said


@pytest.mark.parametrize("name", BROKERS)
async def test_who_does_not_speak_tls_is_told_no_password(name: str) -> None:
    told = bytearray()
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        # NATS sends this first, without TLS; the servers of the others wait for the client.
        writer.write(b'INFO {"server_id":"x","version":"2.11.0","max_payload":1048576,"auth_required":true}\r\n')
        while received := await reader.read(65536):
            told.extend(received)
            if b"PING" in received:
                writer.write(b"PONG\r\n")
        writer.close()
        connections -= 1

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        scheme = BROKERS[name].tls_scheme
        said = await refusal(name, f"{scheme}://relay:{PASSWORD}@127.0.0.1:{port}")
        await until(lambda: connections == 0)
    assert PASSWORD.encode() not in told
    assert name != "nats" or "the URL asks for TLS" in said
