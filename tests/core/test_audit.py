"""The audit log: its lines, and the limit of lines about rejected tokens."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextvars import copy_context

import pytest

from testing.audit import AuditLines
from userrealtime_core import audit
from userrealtime_core.audit import INTERVAL_S, LINES, RejectedTokens
from userrealtime_core.logging_setup import set_up


@pytest.fixture
def lines() -> Iterator[AuditLines]:
    with AuditLines() as lines:
        yield lines


def test_a_line_has_its_event_and_no_empty_fields(lines: AuditLines) -> None:
    audit.record("role-created", "made", role="urt_1_a", user=None, namespace="")
    [line] = lines.all
    assert line.pop("time")
    assert line == {
        "level": "info",
        "message": "made",
        "audit": True,
        "event": "role-created",
        "role": "urt_1_a",
    }


def test_the_level_of_the_process_hides_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in (audit.LOGGER, "userrealtime_core"))]
    handlers, levels = root.handlers[:], [logger.level for logger in loggers]
    try:
        set_up("error")
        audit.record("role-created", "made")
    finally:
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert json.loads(capsys.readouterr().out)["event"] == "role-created"


def test_a_rejection_has_the_client_and_what_the_token_claims(lines: AuditLines) -> None:
    def reject() -> None:
        audit.set_client(("192.0.2.1", 1), "198.51.100.7" + "x" * 1000)
        RejectedTokens().record("expired", {"subject": "s" * 1000, "key_id": ["no", "text"]}, user="alice")

    copy_context().run(reject)
    [line] = lines.all
    assert (line["event"], line["reason"], line["user"], line["client"]) == (
        "token-rejected",
        "expired",
        "alice",
        "192.0.2.1",
    )
    assert line["forwarded_for"].startswith("198.51.100.7x")
    assert {len(line["forwarded_for"]), len(line["subject"])} == {audit.MAX_TEXT}
    assert "key_id" not in line


async def test_rejections_are_limited_and_counted(lines: AuditLines) -> None:
    now = 100.0
    rejected = RejectedTokens(lambda: now)
    for _ in range(LINES + 5):
        rejected.record("expired", {})
    assert len(lines.of("token-rejected")) == LINES
    now += INTERVAL_S
    rejected.record("expired", {})
    assert len(lines.of("token-rejected")) == LINES + 1
    assert [line["count"] for line in lines.of("token-rejections-suppressed")] == [5]


async def test_the_count_is_written_without_another_rejection(
    lines: AuditLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "INTERVAL_S", 0.05)
    rejected = RejectedTokens()
    for _ in range(LINES + 5):
        rejected.record("expired", {})
    while not lines.of("token-rejections-suppressed"):
        await asyncio.sleep(0.01)
    assert sum(line["count"] for line in lines.of("token-rejections-suppressed")) + len(lines.of("token-rejected")) == (
        LINES + 5
    )
