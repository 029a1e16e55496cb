"""Every command of README.md and docs/, typed as a reader does, those of a page in one shell; see website/blocks.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from testing.browser import browser
from testing.kubernetes import CRD
from testing.local.apiserver import LocalApiServer
from testing.patience import PATIENCE_S, WITHIN
from testing.system import CHART, OPERATOR_NAMESPACE, ROOT, USERS_NAMESPACE, System, install, uninstall
from website.blocks import Block, missing_output, page_blocks

PAGES = page_blocks()
RUN = {page: blocks for page, blocks in PAGES.items() if any(block.is_run for block in blocks)}
BLOCK_TIMEOUT_S = 2 * PATIENCE_S
OUTPUT_TIMEOUT_S = PATIENCE_S
USER = "alice"


class Terminal:
    """An interactive shell in a folder. Its output, with standard error, is in `text`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._shell = subprocess.Popen(
            ["bash", "-e"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._selector = selectors.DefaultSelector()
        assert self._shell.stdout is not None
        self._selector.register(self._shell.stdout, selectors.EVENT_READ)
        self.text = ""

    def type(self, commands: str) -> None:
        """Type lines, without waiting for their output."""
        assert self._shell.stdin is not None
        # In braces: the shell reads all lines before it starts, and no command reads the next lines as its input.
        self._shell.stdin.write(f"{{\n{commands}\n}} </dev/null\nprintf '\\0'\n".encode())
        self._shell.stdin.flush()

    def until(self, wanted: str | list[str], timeout: float) -> None:
        """Read on until the text ends so, or has these lines.

        Raises:
            AssertionError: the shell has ended, a command having failed, or `timeout` seconds have passed.
        """
        deadline = time.monotonic() + timeout
        while not self._came(wanted):
            remaining = deadline - time.monotonic()
            assert remaining > 0, f"after {timeout:.0f} s there is not {wanted!r}, but:\n{self.text[-5000:]}"
            if not self._selector.select(remaining):
                continue
            assert self._shell.stdout is not None
            chunk = os.read(self._shell.stdout.fileno(), 65536)
            assert chunk, f"a command failed:\n{self.text[-5000:]}"
            self.text += chunk.decode(errors="replace")

    def _came(self, wanted: str | list[str]) -> bool:
        if isinstance(wanted, str):
            return self.text.endswith(wanted)
        return missing_output(wanted, self.text) is None

    def is_open(self) -> bool:
        """Whether the shell runs: it ends at the first command that fails."""
        return self._shell.poll() is None

    def close(self) -> None:
        """End the shell and its processes."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._shell.pid, number)
                self._shell.wait(timeout=PATIENCE_S)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
        self._selector.close()
        for pipe in (self._shell.stdin, self._shell.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()


class Session:
    """A reader with a fresh copy of the repository, and the terminals that the page requires."""

    def __init__(self, system: System, folder: Path) -> None:
        self._folder = folder / "userrealtime"
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.check_output(listing, cwd=ROOT, text=True, timeout=PATIENCE_S).split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self._folder / name)
        # The environment of this test is the one that `make venv` would create.
        (self._folder / ".venv").symlink_to(sys.prefix)
        for name in ("pyproject.toml", "locks/dev.txt"):
            os.utime(self._folder / name, (0, 0))
        self._stands_for = _stands_for(system)
        programs = (
            Path(sys.executable).parent,
            system.cluster.kubectl_path().parent,
            system.cluster.helm_path().parent,
        )
        path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
        self._environment = {**system.cluster.environment(), "PATH": path, "CI": "true"}
        self._terminals = [self._terminal()]
        self._listening: list[tuple[Block, Terminal]] = []

    def _terminal(self) -> Terminal:
        return Terminal(self._folder, self._environment)

    def go_through(self, block: Block) -> None:
        """Execute a block as a reader does.

        Raises:
            AssertionError: it does not do what the page says.
        """
        if block.file is not None:
            (self._folder / block.file).write_text(self._real(block.text))
        elif not block.is_run:
            return
        elif block.word == "in another terminal":
            terminal = self._terminal()
            self._terminals.append(terminal)
            self._listening.append((block, terminal))
            terminal.type(self._real(block.commands))
            terminal.until(block.output[:1], OUTPUT_TIMEOUT_S)
        else:
            terminal = self._terminals[0]
            terminal.text = ""
            terminal.type(self._real(block.commands))
            terminal.until("\0", BLOCK_TIMEOUT_S)
            line = missing_output(block.output, terminal.text.removesuffix("\0"))
            assert line is None, f"{block}: {line!r} did not come, but:\n{terminal.text}"

    def finish(self) -> None:
        """Check that the other terminals have their expected output."""
        for block, terminal in self._listening:
            terminal.until(block.output, OUTPUT_TIMEOUT_S)
            assert terminal.is_open(), f"{block}: a command failed:\n{terminal.text[-5000:]}"

    def close(self) -> None:
        for terminal in self._terminals:
            terminal.close()

    def _real(self, text: str) -> str:
        for example, real in self._stands_for.items():
            text = text.replace(example, real)
        return text


def _stands_for(system: System) -> dict[str, str]:
    """Return the replacements of a reader for the names of example.com."""
    stands_for = {
        "postgresql://realtime:password@db.example.com:5432/app": system.database.url,
        "https://realtime.example.com": system.values["route"]["url"].removesuffix("/{name}"),
    }
    for part in ("operator", "relay"):
        image = system.values[part]["image"]
        real = f"{image['repository']},{part}.image.tag={image['tag']}"
        stands_for[f"registry.example.com/userrealtime-{part}"] = real
    return stands_for


@pytest.fixture
def session(system: System, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    blocks: list[Block] = request.getfixturevalue("blocks")
    typed = "".join(block.commands for block in blocks if block.is_run)
    if "helm install" in typed:
        uninstall(system.cluster)
    before = _resources(system)
    if "helm install" not in typed:
        system.apply_user(USER)
        system.wait_ready(USER)
    session = Session(system, tmp_path)
    try:
        yield session
    finally:
        session.close()
        if re.search(r"helm (un)?install", typed):
            install(system.cluster)
        for name in _resources(system) - before:
            system.delete_user(name)
        for example in re.findall(r"kubectl apply -f (examples/\S+)", typed):
            system.kubectl("delete", "-f", str(ROOT / example), "--ignore-not-found", WITHIN)


def _resources(system: System) -> set[str]:
    if "userrealtimes." not in system.cluster.kubectl("get", "crds", "-o", "name"):
        return set()
    return set(system.kubectl("get", "urt", "-o", "jsonpath={.items[*].metadata.name}").split())


@pytest.mark.parametrize("blocks", [pytest.param(blocks, id=page) for page, blocks in RUN.items()])
def test_a_page_works_as_it_is_typed(session: Session, blocks: list[Block]) -> None:
    for block in blocks:
        session.go_through(block)
    session.finish()


async def test_the_page_of_the_tutorial_shows_events_in_a_browser(
    system: System, users: Callable[..., str], database: asyncpg.Connection, tmp_path: Path
) -> None:
    [html] = [block.text for block in PAGES["docs/tutorial.md"] if block.file == "page.html"]
    file = tmp_path / "page.html"
    file.write_text(html)
    reader = await asyncio.to_thread(users, "reader")
    url = (await asyncio.to_thread(system.get, "urt", reader))["status"]["url"]
    token = await asyncio.to_thread(system.token, reader)
    move = "select userrealtime.publish($1, 'parcel.update', jsonb_build_object('place', $2::text))"
    async with browser() as chromium, chromium.page() as page:
        await page.goto(f"file://{file}#{url}%20{token}")
        await page.wait_for("list.innerText.includes('connected')")
        await database.execute(move, reader, "Berlin")
        await page.wait_for("list.innerText.includes('Berlin')")
        child = (await asyncio.to_thread(system.get, "urt", reader))["status"]["name"]
        await asyncio.to_thread(
            system.kubectl, "delete", "pods", "-l", f"app.kubernetes.io/instance={child}", "--wait=false"
        )
        await database.execute(move, reader, "Oslo")
        await page.wait_for("list.innerText.includes('Oslo')")
        assert page.problems == []
        assert await page.evaluate("list.innerText.match(/Berlin/g).length") == 1


def test_the_audit_policy_records_who_requested_a_user(tmp_path: Path) -> None:
    [policy] = [block.text for block in PAGES["docs/audit.md"] if block.file == "audit-policy.yaml"]
    (tmp_path / "policy.yaml").write_text(policy)
    log = tmp_path / "audit.jsonl"
    resource = {
        "apiVersion": "userrealtime.dev/v1alpha1",
        "kind": "UserRealtime",
        "metadata": {"name": USER},
        "spec": {"userId": USER},
    }
    options = (f"--audit-policy-file={tmp_path / 'policy.yaml'}", f"--audit-log-path={log}")
    with LocalApiServer(*options) as server:
        server.kubectl("apply", "-f", str(CRD))
        server.kubectl("wait", "--for=condition=Established", "crd/userrealtimes.userrealtime.dev", WITHIN)
        server.kubectl("create", "-f", "-", input=json.dumps(resource))
    recorded = [json.loads(line) for line in log.read_text().splitlines()]
    [created] = [each for each in recorded if each["stage"] == "ResponseComplete"]
    assert created["verb"] == "create"
    assert created["user"]["username"] == "admin"
    assert created["objectRef"]["name"] == USER


# The API server has no resource for its audit policy, which is tested above.
MANIFESTS = [
    block
    for blocks in PAGES.values()
    for block in blocks
    if block.language == "yaml" and block.file != "audit-policy.yaml"
]


@pytest.mark.parametrize("block", MANIFESTS, ids=str)
def test_yaml_is_taken_by_the_cluster_or_the_chart(system: System, block: Block) -> None:
    known = yaml.safe_load((CHART / "values.yaml").read_text()).keys()
    for document in yaml.safe_load_all(block.text):
        values = _values_of_a_release(document) if "kind" in document else document
        if values is None:
            system.cluster.kubectl(
                "apply", "--dry-run=server", "--validate=strict", "-f", "-", input=json.dumps(document)
            )
        elif values.keys() <= known:
            values = {"database": {"url": "postgresql://a/b"}, "namespaces": ["users"], **values}
            system.cluster.helm(
                "template",
                "x",
                str(CHART),
                "--namespace",
                OPERATOR_NAMESPACE,
                "--values",
                "-",
                input=json.dumps(values),
            )
        else:
            _is_part_of_a_pod(system, document)


def _values_of_a_release(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the chart's values in a resource of Argo CD or Flux, whose kinds the cluster does not have."""
    match document:
        case {"kind": "Application", "spec": {"source": {"helm": {"valuesObject": dict(values)}}}}:
            return values
        case {"kind": "HelmRelease", "spec": {"values": dict(values)}}:
            return values
    return None


def _is_part_of_a_pod(system: System, document: dict[str, Any]) -> None:
    """Return a part of a pod's spec, with the `env` and `volumeMounts` of its container."""
    of_container: dict[str, Any] = {name: document.pop(name) for name in ("env", "volumeMounts") if name in document}
    restricted: dict[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container: dict[str, Any] = {"name": "x", "image": "x", "securityContext": restricted, **of_container}
    safe: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", "namespace": USERS_NAMESPACE},
        "spec": {"securityContext": safe, "containers": [container], **document},
    }
    system.cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=json.dumps(pod))
