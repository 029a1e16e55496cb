"""The ID of a request: a valid one is adopted, and it is in every response and in the log lines of the request."""

from __future__ import annotations

import json
import logging
import string
from collections.abc import Iterator
from contextvars import copy_context

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from testing.database import Database
from testing.relay import http_client
from testing.relay.harness import client, receive, running, until
from userrealtime_core.logging_setup import JsonFormatter
from userrealtime_relay.transports.request_id import HEADER, adopt

ID = "trace-4bf92f3577b34da6:00f067aa0ba902b7"
SAFE = set(string.ascii_letters + string.digits + "._:-")


@given(st.text() | st.text("ab\r\n{}\"'", max_size=200))
def test_an_id_is_always_safe_to_write(text: str) -> None:
    chosen = copy_context().run(adopt, text)
    assert 1 <= len(chosen) <= 128
    assert set(chosen) <= SAFE
    assert chosen == text or chosen not in text


@pytest.fixture
def lines() -> Iterator[list[dict[str, object]]]:
    """A list that receives the log lines of the relay, as they are written."""
    found: list[dict[str, object]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JsonFormatter().format(record)))

    logger, handler = logging.getLogger("userrealtime_relay"), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_a_websocket_is_found_in_the_log_by_its_id(migrated: Database, lines: list[dict[str, object]]) -> None:
    async with running(migrated.url) as relay:
        async with client(relay, headers={HEADER: ID}) as one, client(relay) as other:
            await receive(one)
            await receive(other)
            assert one.response is not None
            assert other.response is not None
            assert one.response.headers[HEADER] == ID
            made = other.response.headers[HEADER]

        def closes() -> set[object]:
            return {line["request_id"] for line in lines if line["message"] == "connection closed"}

        await until(lambda: closes() == {ID, made})
        assert all("request_id" not in line for line in lines if line["message"] == "connected to Postgres")


async def test_refusals_and_plain_answers_have_one_too(migrated: Database) -> None:
    async with running(migrated.url) as relay:
        with pytest.raises(InvalidStatus) as refused:
            async with client(relay, path="/nowhere", headers={HEADER: ID}):
                pass
        assert refused.value.response.headers[HEADER] == ID
        answer = await http_client.request(relay, "/poll", headers={HEADER: "not an id!"})
        assert len(answer.headers[HEADER.lower()]) == 32
