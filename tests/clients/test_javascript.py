"""The JavaScript client, in node: its own tests, and the scenarios against a real relay."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

from testing.clients.fixture import ROOT, ClientFixture, serving
from testing.clients.javascript import program, run
from testing.local.postgres import LocalPostgres

SCENARIOS_S = 400


def test_its_parts(application: Path) -> None:
    vectors = application.parents[1] / "protocol"
    if not vectors.exists():  # at the path that the tests use
        vectors.symlink_to(ROOT / "protocol")
    files = [str(path) for path in sorted((application / "test").glob("*.test.mjs"))]
    output = run(program("node", "nodejs"), "--test", *files, folder=application)
    assert "\n# fail 0\n" in output
    assert int(output.partition("\n# pass ")[2].split()[0]) > 90


async def test_scenarios(application: Path, postgres_server: LocalPostgres) -> None:
    node = program("node", "nodejs")
    major = int(run(node, "--version", folder=application).removeprefix("v").partition(".")[0])
    options = ["--experimental-websocket"] if major < 22 else []
    async with ClientFixture(postgres_server) as stage, serving(stage) as url:
        process = await asyncio.create_subprocess_exec(
            node,
            *options,
            "--test",
            "test/relay/node.mjs",
            cwd=application,
            env={**os.environ, "STAGE": url},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(SCENARIOS_S):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, output.decode()
    assert "\n# skipped 0\n" in output.decode()


def test_it_has_no_dependencies_and_types(application: Path) -> None:
    package = application / "node_modules" / "userrealtime"
    assert sorted(path.name for path in package.iterdir()) == ["LICENSE", "README.md", "dist", "package.json"]
    assert not (application / "node_modules" / "typescript").exists()
    user = application / "user.ts"
    user.write_text(
        'import { UserRealtime, type UserEvent } from "userrealtime";\n'
        'const client = new UserRealtime({ url: "https://h/alice", token: async () => "t" });\n'
        'client.on("event", (event: UserEvent) => console.log(event.id));\n'
        'client.on("state", ({ state, error }) => console.log(state, error?.code));\n'
        "for await (const message of client) {\n"
        '  if (message.type === "reset") console.log(message.reason);\n'
        "  else console.log(message.data);\n"
        "}\n"
        'const id: number = await client.publish("note.added", { text: "x" });\n'
        "console.log(id, client.position?.epoch);\n"
    )
    compiler = application.parent / "source" / "node_modules" / ".bin" / "tsc"
    settings = ("--strict", "--noEmit", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom")
    run(str(compiler), *settings, str(user), folder=application)
