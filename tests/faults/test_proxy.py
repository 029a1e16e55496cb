"""Each fault of the proxy takes effect. Without an effect, the tests of faults would prove nothing."""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testing.faults.proxy import Link, Mode, Notifications
from testing.relay.harness import PATIENCE_S, until


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


ROW, NOTE, READY = message(b"D", b"a row"), message(b"A", b"a notification"), message(b"Z", b"I")


@pytest.mark.parametrize(
    ("mode", "passed"),
    [
        ("pass", [NOTE, ROW, READY, READY]),
        ("drop", [ROW, READY, READY]),
        ("double", [NOTE, NOTE, ROW, READY, READY]),
        ("late", [ROW, READY, NOTE, READY]),
    ],
)
@given(cuts=st.lists(st.integers(0, 60)))
def test_what_becomes_of_notifications_however_the_bytes_come(mode: Mode, passed: list[bytes], cuts: list[int]) -> None:
    whole = NOTE + ROW + READY + READY
    filtered = Notifications(lambda: mode)
    bounds = [0, *sorted(cuts), len(whole)]
    parts = [whole[start:end] for start, end in itertools.pairwise(bounds)]
    assert b"".join(filtered(part) for part in parts) == b"".join(passed)


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """An echo server that counts its connections."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(line)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def read(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await reader.readline()


@pytest.mark.parametrize(("up", "down"), [(True, False), (False, True), (True, True)])
async def test_what_is_held_arrives_when_released(up: bool, down: bool) -> None:
    async with echo() as target, Link(target) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"one\n")
        assert await read(reader) == b"one\n"
        link.hold(up=up, down=down)
        writer.write(b"two\n")
        waiting = asyncio.create_task(read(reader))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        link.release()
        assert await waiting == b"two\n"
        writer.close()
        await until(lambda: link.connections == 0)


async def test_what_is_stranded_stays_so_and_the_next_connection_works() -> None:
    async with echo() as target, Link(target) as link:
        stranded, stranded_writer = await asyncio.open_connection("127.0.0.1", link.port)
        stranded_writer.write(b"one\n")
        assert await read(stranded) == b"one\n"
        link.strand()
        stranded_writer.write(b"two\n")
        waiting = asyncio.create_task(read(stranded))
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"three\n")
        assert await read(reader) == b"three\n"
        link.release()
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        writer.transport.abort()
        stranded_writer.transport.abort()
        assert await waiting == b""


async def test_a_cut_ends_both_ends_and_the_next_connection_works() -> None:
    async with echo() as target, Link(target) as link:
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            writer.write(b"one\n")
            assert await read(reader) == b"one\n"
            link.cut()
            with suppress(ConnectionResetError):
                assert await read(reader) == b""
            await until(lambda: link.connections == 0)
            writer.transport.abort()


@pytest.mark.parametrize("refusing", [True, False])
async def test_a_client_is_disconnected_if_the_target_rejects_it(refusing: bool) -> None:
    async with echo() as port:
        target = port
    async with Link(target) as link:
        link.refusing = refusing
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        with suppress(ConnectionResetError):
            assert await read(reader) == b""
        await until(lambda: link.connections == 0)
        writer.transport.abort()
