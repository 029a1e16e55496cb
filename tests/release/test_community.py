"""The files for contributors that GitHub reads: templates of issues and pull requests, owners, and updates of actions.

GitHub ignores a form with an error, and shows a blank issue instead.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from release.build import ROOT

GITHUB: Final = ROOT / ".github"
FORMS: Final = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
INPUTS: Final = {"checkboxes", "dropdown", "input", "textarea", "upload"}
ATTRIBUTES: Final = {"label", "description", "placeholder", "value", "render", "multiple", "options", "default"}


def form_problems(form: dict[str, Any]) -> list[str]:
    """Return what GitHub rejects in an issue form."""
    problems = [f"{name} is missing" for name in ("name", "description") if not form.get(name)]
    body = form.get("body") or []
    problems += [f"unknown type {each.get('type')}" for each in body if each.get("type") not in {*INPUTS, "markdown"}]
    inputs = [each for each in body if each.get("type") in INPUTS]
    if not inputs:
        problems.append("it has no input")
    ids = [each.get("id") for each in inputs]
    problems += [f"the id {name!r} is invalid" for name in ids if not re.fullmatch(r"[a-zA-Z0-9_-]+", name or "")]
    problems += [f"the id {name} is not unique" for name in {*ids} if ids.count(name) > 1]
    labels = [each["attributes"].get("label") for each in inputs]
    problems += [f"the label {label!r} is missing or not unique" for label in {*labels} if labels.count(label) != 1]
    for each in inputs:
        problems += [f"unknown attribute {name}" for name in each["attributes"].keys() - ATTRIBUTES]
        problems += [f"unknown validation {name}" for name in each.get("validations", {}).keys() - {"required"}]
    return problems


def test_there_are_forms_for_bugs_and_proposals() -> None:
    assert [path.name for path in FORMS] == ["bug.yml", "proposal.yml"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_are_valid(path: Path) -> None:
    assert form_problems(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"description": ""}, "description is missing"),
        ({"body": []}, "it has no input"),
        ({"body": [{"type": "text", "attributes": {"label": "x"}}]}, "unknown type text"),
        ({"body": [{"type": "input", "id": "a b", "attributes": {"label": "x"}}]}, "the id 'a b' is invalid"),
        ({"body": [{"type": "input", "id": "a", "attributes": {"label": "x"}}] * 2}, "the id a is not unique"),
        ({"body": [{"type": "input", "id": "a", "attributes": {"label": "x", "hint": "y"}}]}, "unknown attribute hint"),
    ],
)
def test_errors_of_forms_are_detected(change: dict[str, Any], problem: str) -> None:
    form = yaml.safe_load(FORMS[0].read_text())
    assert problem in form_problems({**form, **change})


def test_the_chooser_is_valid() -> None:
    chooser = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "config.yml").read_text())
    assert chooser.keys() <= {"blank_issues_enabled", "contact_links"}
    assert chooser["blank_issues_enabled"] is True


def test_the_template_of_pull_requests_names_commands_and_files_that_exist() -> None:
    text = (GITHUB / "pull_request_template.md").read_text()
    targets = re.findall(r"`make ([\w-]+)`", text)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    files = re.findall(r"`([\w./-]+\.md)`", text)
    assert files
    assert all((ROOT / name).is_file() for name in files)


def test_owners_are_named_for_all_files() -> None:
    rules = [
        line.split()
        for line in (GITHUB / "CODEOWNERS").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert rules[0][0] == "*"
    for _, *owners in rules:
        assert owners
        assert all(re.fullmatch(r"@[\w-]+(/[\w-]+)?", owner) for owner in owners)


def test_updates_name_folders_that_exist() -> None:
    settings = yaml.safe_load((GITHUB / "dependabot.yml").read_text())
    assert settings["version"] == 2
    assert settings["updates"]
    for update in settings["updates"]:
        assert update.keys() >= {"package-ecosystem", "schedule"}
        for folder in update.get("directories") or [update["directory"]]:
            assert (ROOT / folder.strip("/")).is_dir()
