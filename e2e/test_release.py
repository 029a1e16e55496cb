"""A release, built twice from the same commit. Only Helm, npm and node are needed, no cluster."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import yaml

from release import build
from testing.clients.javascript import program, run
from testing.cluster import ClusterError, choose
from testing.system import CHART, ROOT
from userrealtime_operator import __version__ as VERSION

DIGESTS: Final = {
    name: f"sha256:{letter * 64}" for name, letter in zip(("operator", "relay", "demo"), "abc", strict=True)
}
LIMIT_S: Final = 300
SECTION: Final = f"## {VERSION} - 2026-12-01"


@dataclass(frozen=True)
class Built:
    """A directory with the files of a release."""

    folder: Path

    def file(self, name: str) -> Path:
        return self.folder / name


def release_notes(root: Path) -> None:
    """Give the changelog a section for the version, which it gets shortly before a release."""
    path = root / "CHANGELOG.md"
    text = path.read_text()
    if f"## {VERSION}" not in text:
        path.write_text(text.replace("## Unreleased\n", f"## Unreleased\n\n{SECTION}\n", 1))


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The node modules of the JavaScript client, installed once."""
    folder = tmp_path_factory.mktemp("modules")
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(ROOT / "clients" / "js" / name, folder)
    command = [program("npm", "npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=LIMIT_S)
    return folder / "node_modules"


@pytest.fixture(scope="module")
def builds(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    """Two builds of the same commit, in different directories, time zones and locales, and with different umasks."""
    git = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=60)
    if git.returncode != 0:
        pytest.skip(f"a release is built from a commit, and this checkout has none: {git.stderr.strip()}")
    tools = build.Tools(str(choose().helm_path()), program("npm", "npm"))
    found = []
    for zone, mask in (("UTC", 0o022), ("Asia/Kolkata", 0o077)):
        before = os.umask(mask)
        zone_before = os.environ.get("TZ")
        os.environ["TZ"] = zone
        try:
            with build.source() as source:
                release_notes(source.root)
                shutil.copytree(modules, source.root / "clients" / "js" / "node_modules", symlinks=True)
                target = tmp_path_factory.mktemp("dist")
                build.build(source, VERSION, DIGESTS, tools, target)
        finally:
            os.umask(before)
            os.environ.pop("TZ")
            if zone_before is not None:
                os.environ["TZ"] = zone_before
        found.append(Built(target))
    return found[0], found[1]


@pytest.fixture
def built(builds: tuple[Built, Built]) -> Built:
    return builds[0]


def test_both_builds_are_equal(builds: tuple[Built, Built]) -> None:
    one, other = ({path.name: path.read_bytes() for path in each.folder.iterdir()} for each in builds)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_the_files(built: Built) -> None:
    bills = {f"userrealtime-{name}-{VERSION}.cdx.json" for name in ("python", "js", "chart", *DIGESTS)}
    assert {path.name for path in built.folder.iterdir()} == bills | {
        "SHA256SUMS",
        "release-notes.md",
        f"userrealtime-{VERSION}-py3-none-any.whl",
        f"userrealtime-{VERSION}.tar.gz",
        f"userrealtime-js-{VERSION}.tgz",
        f"userrealtime-chart-{VERSION}.tgz",
        f"kubectl-userrealtime-{VERSION}.tar.gz",
        "userrealtime-krew.yaml",
    }


def test_the_checksums_are_those_of_all_files(built: Built) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=built.folder, capture_output=True)
    assert done.returncode == 0, done.stdout
    listed = {line.split()[1] for line in built.file("SHA256SUMS").read_text().splitlines()}
    assert {path.name for path in built.folder.iterdir()} - listed == {"SHA256SUMS", "release-notes.md"}


def test_the_chart_refers_to_the_images_by_digest(built: Built) -> None:
    text = choose().helm(
        *("template", "x", str(built.file(f"userrealtime-chart-{VERSION}.tgz"))),
        *("--set", "database.existingSecret.name=database", "--set", "namespaces={users}"),
    )
    objects = [item for item in yaml.safe_load_all(text) if item]
    [operator] = [
        item for item in objects if item["kind"] == "Deployment" and item["metadata"]["name"] == "x-userrealtime"
    ]
    [container] = operator["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith(f"/userrealtime-operator:{VERSION}@{DIGESTS['operator']}")
    [config] = [item["data"]["config.yaml"] for item in objects if "config.yaml" in item.get("data", {})]
    assert yaml.safe_load(config)["relay"]["image"].endswith(f"/userrealtime-relay:{VERSION}@{DIGESTS['relay']}")


def test_the_chart_passes_lint_and_has_no_other_files(built: Built) -> None:
    path = built.file(f"userrealtime-chart-{VERSION}.tgz")
    choose().helm("lint", "--strict", str(path), "--set", "database.existingSecret.name=database")
    with tarfile.open(path) as files:
        assert "userrealtime/icon.svg" not in files.getnames()


def test_the_chart_describes_its_own_values(built: Built) -> None:
    path = str(built.file(f"userrealtime-chart-{VERSION}.tgz"))
    page = choose().helm("show", "readme", path)
    assert f"helm install userrealtime {build.project().charts}/userrealtime --version {VERSION} " in page
    assert "### operator\n" in page
    for digest in (DIGESTS["operator"], DIGESTS["relay"]):
        assert f"| `{digest}` |" in page


def test_the_plugin_for_krew(built: Built) -> None:
    archive = built.file(f"kubectl-userrealtime-{VERSION}.tar.gz")
    [platform] = yaml.safe_load(built.file("userrealtime-krew.yaml").read_text())["spec"]["platforms"]
    assert platform["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert platform["uri"].endswith(f"/{archive.name}")
    with tarfile.open(archive) as files:
        assert {name: files.getmember(name).mode for name in files.getnames()} == {
            "LICENSE": 0o644,
            "kubectl-userrealtime": 0o755,
        }
    assert {each["from"] for each in platform["files"]} == {"LICENSE", platform["bin"]}


def test_the_distributions_have_the_same_packages(built: Built) -> None:
    with zipfile.ZipFile(built.file(f"userrealtime-{VERSION}-py3-none-any.whl")) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    with tarfile.open(built.file(f"userrealtime-{VERSION}.tar.gz")) as source:
        members = source.getnames()
    assert {name for name in names if not any(member.endswith(f"/{name}") for member in members)} == set()
    packages = {name.partition("/")[0] for name in names}
    assert packages >= {"userrealtime", "userrealtime_client", "userrealtime_operator", "userrealtime_relay"}
    assert not any("/tests/" in member or "/docs/" in member for member in members)


PYTHON_USER: Final = """
from userrealtime.server import TokenKeys, sign
from userrealtime_client import Client, Event


async def follow(url: str, key: str) -> list[int]:
    token = sign(TokenKeys(key), "alice")
    async with Client(url, token=token) as client:
        return [message.id async for message in client if isinstance(message, Event)]
"""
NODE_USER: Final = """
import { UserRealtime, type UserEvent } from "userrealtime";
import { position, type Connection } from "userrealtime/server";

export const client = new UserRealtime({ url: "https://h/alice", token: async () => "t" });
client.on("event", (event: UserEvent) => console.log(event.id));
export const state = (connection: Connection): Promise<string> => position(connection, "alice");
"""


def test_the_wheel_works_in_an_empty_environment(built: Built, tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    wheel = built.file(f"userrealtime-{VERSION}-py3-none-any.whl")
    run(str(programs / "uv"), "venv", "--quiet", "--python", sys.executable, str(environment), folder=tmp_path)
    requirement = f"userrealtime[cli,client,operator,relay,server] @ {wheel.as_uri()}"
    run(str(programs / "uv"), "pip", "install", "--quiet", "--python", str(python), requirement, folder=tmp_path)
    for name in ("userrealtime", "kubectl-userrealtime", "userrealtime-operator", "userrealtime-relay"):
        assert "usage:" in run(str(environment / "bin" / name), "--help", folder=tmp_path)
    (tmp_path / "user.py").write_text(PYTHON_USER)
    run(str(python), "-I", "-c", "import userrealtime.server, userrealtime_client", folder=tmp_path)
    mypy = [str(programs / "mypy"), "--strict", "--python-executable", str(python), "--config-file=", "user.py"]
    assert "Success" in run(*mypy, folder=tmp_path)


def test_the_npm_package_works_in_an_empty_folder(built: Built, modules: Path, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}')
    tarball = str(built.file(f"userrealtime-js-{VERSION}.tgz"))
    run(program("npm", "npm"), "install", "--ignore-scripts", "--no-audit", "--no-fund", tarball, folder=tmp_path)
    assert {path.name for path in (tmp_path / "node_modules").iterdir() if path.name[0] != "."} == {"userrealtime"}
    script = 'for (const part of ["", "/server", "/svelte"]) await import(`userrealtime${part}`)'
    run(program("node", "nodejs"), "--input-type=module", "--eval", script, folder=tmp_path)
    (tmp_path / "user.ts").write_text(NODE_USER)
    settings = ("--strict", "--noEmit", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom")
    run(str(modules / ".bin" / "tsc"), *settings, "user.ts", folder=tmp_path)


def test_the_npm_package_names_its_repository(built: Built) -> None:
    with tarfile.open(built.file(f"userrealtime-js-{VERSION}.tgz")) as files:
        content = files.extractfile("package/package.json")
        assert content is not None
        package = json.load(content)
        names = files.getnames()
    assert package["repository"]["url"] == f"git+{build.project().url}.git"
    assert {target.removeprefix("./") for export in package["exports"].values() for target in export.values()} <= {
        name.removeprefix("package/") for name in names
    }


def test_each_bill_names_its_subject_and_its_parts(built: Built) -> None:
    bills = {path.name.split("-")[1]: json.loads(path.read_text()) for path in built.folder.glob("*.cdx.json")}
    assert {name: content["metadata"]["component"]["version"] for name, content in bills.items()} == dict.fromkeys(
        bills, VERSION
    )
    assert "kopf" in {part["name"] for part in bills["operator"]["components"]}
    assert "kopf" not in {part["name"] for part in bills["relay"]["components"]}
    assert {part["purl"].split("@")[1][:14] for part in bills["chart"]["components"]} == {
        "sha256%3Aaaaaa",
        "sha256%3Abbbbb",
    }


def test_a_digest_reaches_every_pod() -> None:
    image = {"digest": DIGESTS["operator"]}
    values = {
        **{part: {"image": image} for part in ("operator", "relay", "edge")},
        "database": {"url": "postgresql://user:password@host/database"},
        "signals": {"type": "nats", "url": "nats://broker"},
        "route": {"type": "Edge"},
        "namespaces": ["users"],
    }
    text = choose().helm("template", "x", str(CHART), "--values", "-", input=json.dumps(values))
    objects = [item for item in yaml.safe_load_all(text) if item]
    pods = {
        item["metadata"]["name"]: container["image"]
        for item in objects
        if item["kind"] in ("Deployment", "Job")
        for container in item["spec"]["template"]["spec"]["containers"]
    }
    assert len(pods) == 5
    [config] = [item["data"]["config.yaml"] for item in objects if "config.yaml" in item.get("data", {})]
    for reference in [*pods.values(), yaml.safe_load(config)["relay"]["image"]]:
        assert re.fullmatch(rf"[a-z-]+:[\w.-]+@{DIGESTS['operator']}", reference)


def test_an_invalid_digest_is_rejected() -> None:
    with pytest.raises(ClusterError, match=r"operator.image.digest|/operator/image/digest"):
        choose().helm(
            *("template", "x", str(CHART), "--set", "database.existingSecret.name=database"),
            *("--set", "operator.image.digest=latest"),
        )
