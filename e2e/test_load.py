"""The load script of bench/load, aimed at a user of the local cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from testing.cluster import binaries
from testing.patience import PATIENCE_S
from testing.system import ROOT, System

CLIENTS, EVENTS = 20, 100
LIMIT_S = 120
MakeUser = Callable[..., str]


@pytest.fixture(scope="module")
def k6(pytestconfig: pytest.Config) -> Path:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        return binaries.k6()


async def run(k6: Path, summary: Path, url: str, token: str, **settings: int) -> tuple[int | None, str, dict[str, Any]]:
    """Run the script; return the exit status, the output and the values of each metric."""
    given = [f"--env={name}={value}" for name, value in {"URL": url, **settings}.items()]
    process = await asyncio.create_subprocess_exec(
        k6,
        *("run", "--quiet", "--no-color", "--no-usage-report", f"--summary-export={summary}", *given),
        ROOT / "bench" / "load" / "user.js",
        env={**os.environ, "TOKEN": token},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, output.decode(), await asyncio.to_thread(metrics_in, summary)


def metrics_in(summary: Path) -> dict[str, Any]:
    """Return the values of each metric; none if k6 did not start."""
    return dict(json.loads(summary.read_text())["metrics"]) if summary.exists() else {}


async def test_all_clients_get_all_events_over_a_replaced_pod(
    k6: Path, system: System, users: MakeUser, database: asyncpg.Connection, tmp_path: Path
) -> None:
    name = users("load")
    status = system.get("urt", name)["status"]
    settings = {"CLIENTS": CLIENTS, "SECONDS": 60, "EVENTS": EVENTS, "RAMP_SECONDS": 1, "PUBLISH_PER_SECOND": 2}
    work = asyncio.create_task(
        run(k6, tmp_path / "summary.json", status["url"], await asyncio.to_thread(system.token, name), **settings)
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            online = "select coalesce(sum(clients), 0) from userrealtime.online where user_id = $1"
            while await database.fetchval(online, name) < CLIENTS:
                await asyncio.sleep(0.1)
        pods = ("pods", "-l", f"app.kubernetes.io/instance={status['name']}")
        deletion = asyncio.create_task(asyncio.to_thread(system.kubectl, "delete", *pods))
        for number in range(EVENTS):
            # The last event comes when the pod has ended: it accepts connections for some seconds, and then drains.
            if number == EVENTS - 1:
                await deletion
            await database.execute("select userrealtime.publish($1, 'load.test')", name)
            await asyncio.sleep(0.02)
    finally:
        code, output, metrics = await work
    assert code == 0, output
    assert metrics["userrealtime_events"]["count"] == CLIENTS * EVENTS
    assert metrics["userrealtime_reconnects"]["count"] > 0
    stored = await database.fetchval("select count(*) from userrealtime.inbox where user_id = $1", name)
    assert stored > 0
    assert "userrealtime_refusals" not in metrics, output


async def test_a_client_that_is_not_let_in_is_a_failure(
    k6: Path, system: System, users: MakeUser, tmp_path: Path
) -> None:
    name = users("load")
    url = system.get("urt", name)["status"]["url"]
    settings = {"CLIENTS": 2, "SECONDS": 2, "RAMP_SECONDS": 0}
    code, output, metrics = await run(k6, tmp_path / "summary.json", url, "not-a-token", **settings)
    assert code != 0
    assert metrics["userrealtime_failures"]["count"] == 2
    assert "closed for good with 1008" in output
    assert "not-a-token" not in output


async def test_what_is_missing_is_said(k6: Path, tmp_path: Path) -> None:
    code, output, _ = await run(k6, tmp_path / "summary.json", "", "")
    assert code != 0
    assert "URL is missing" in output
