"""The workflows of GitHub run targets of the Makefile, with pinned actions and few permissions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import pytest
import yaml

from release.__main__ import ACTIONS
from testing.cluster.paths import REPOSITORY

Json = dict[str, Any]
FOLDER: Final = REPOSITORY / ".github" / "workflows"
PARTS: Final = ("chart", "github", "npm", "python")
FILES: Final = {path.stem: path for path in sorted(FOLDER.glob("*.yml"))}
MAKE: Final = re.compile(r"make ([a-z-]+(?: [a-z-]+)*|release-publish-\$\{\{ matrix\.part \}\})")
PINNED: Final = re.compile(r"^ *-? *uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
LOCAL: Final = re.compile(r"^ *uses: \./\.github/workflows/\w+\.yml$")


@cache
def workflow(name: str) -> Json:
    loaded: Json = yaml.safe_load(FILES[name].read_text())
    return loaded


def triggers(name: str) -> Json:
    # YAML reads the key `on` as true.
    [found] = [value for key, value in workflow(name).items() if str(key) == "True"]
    return dict(found)


def jobs() -> Iterator[tuple[str, Json]]:
    for name in FILES:
        for job, content in workflow(name)["jobs"].items():
            yield f"{name}.{job}", content


JOBS: Final = dict(jobs())
STEPS: Final = [(name, step) for name, job in JOBS.items() for step in job.get("steps", ())]
RUNS: Final = [(name, step["run"]) for name, step in STEPS if "run" in step]


def makefile_targets() -> set[str]:
    text = (REPOSITORY / "Makefile").read_text()
    names = set(re.findall(r"^([a-z][a-z0-9.-]*%?):", text, re.MULTILINE))
    return {name.replace("%", part) for name in names for part in PARTS}


def test_the_workflows() -> None:
    assert set(FILES) == {"locks", "release", "tests"}
    assert triggers("tests").keys() == {"push", "pull_request", "workflow_call"}
    assert triggers("release") == {"push": {"tags": ["v*"]}}
    assert "schedule" in triggers("locks")


@pytest.mark.parametrize(("job", "command"), RUNS)
def test_each_step_runs_targets_of_the_makefile(job: str, command: str) -> None:
    found = MAKE.fullmatch(command)
    assert found is not None, f"{job} runs {command!r}: make it a target of the Makefile"
    if "$" not in command:
        assert set(found[1].split()) <= makefile_targets()


def test_each_part_can_be_published() -> None:
    parts = JOBS["release.publish"]["strategy"]["matrix"]["part"]
    assert {*parts, "github"} == set(PARTS)
    assert {f"publish-{part}" for part in PARTS} == {name for name in ACTIONS if "publish" in name}


@pytest.mark.parametrize("name", FILES)
def test_actions_are_pinned_by_digest(name: str) -> None:
    lines = [line for line in FILES[name].read_text().splitlines() if "uses:" in line]
    assert lines
    assert [line for line in lines if not PINNED.match(line) and not LOCAL.match(line)] == []


def test_an_action_has_the_same_digest_everywhere() -> None:
    digests: dict[str, set[str]] = {}
    for _, step in STEPS:
        if "uses" in step:
            action, _, digest = step["uses"].partition("@")
            digests.setdefault(action, set()).add(digest)
    assert {action: found for action, found in digests.items() if len(found) > 1} == {}


@pytest.mark.parametrize("job", [name for name, job in JOBS.items() if "steps" in job])
def test_jobs_have_a_time_limit_and_a_fixed_platform(job: str) -> None:
    assert JOBS[job]["timeout-minutes"] <= 90
    assert JOBS[job]["runs-on"] == "ubuntu-24.04"


@pytest.mark.parametrize("name", FILES)
def test_only_jobs_that_need_it_may_write(name: str) -> None:
    assert workflow(name)["permissions"] == {"contents": "read"}


def test_the_permissions_to_write() -> None:
    found = {
        name: {scope for scope, access in job["permissions"].items() if access == "write"}
        for name, job in JOBS.items()
        if "permissions" in job
    }
    assert found == {
        "locks.update": {"contents", "pull-requests"},
        "release.images": {"packages", "id-token", "attestations"},
        "release.build": {"id-token", "attestations"},
        "release.publish": {"packages", "id-token"},
        "release.page": {"contents"},
    }


def test_checkouts_keep_no_credentials() -> None:
    checkouts = [step for _, step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == len([job for job in JOBS.values() if "steps" in job])
    assert [step for step in checkouts if step["with"]["persist-credentials"] is not False] == []


def test_nothing_is_published_before_the_tests() -> None:
    order = ["tests", "images", "build", "publish", "page"]
    assert list(workflow("release")["jobs"]) == order
    assert [JOBS[f"release.{job}"]["needs"] for job in order[1:]] == order[:-1]
