"""The command `userrealtime token`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from testing.cli import ALICE, KEY, RESOURCES, SECRET, Answers, Run, kubeconfig, refusal, resource
from userrealtime_cli.__main__ import main
from userrealtime_cli.token import ttl


def claims(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, KEY, algorithms=["HS256"], options={"verify_aud": False})
    return found


def test_a_token_is_the_users_and_lives_an_hour(run: Run) -> None:
    status, out, err = run("token", "alice")
    assert (status, err) == (0, "")
    found = claims(out.strip())
    assert found.keys() == {"sub", "exp"}
    assert found["sub"] == "alice@example.com"
    assert 3590 < found["exp"] - time.time() <= 3600


def test_its_life_its_claims_and_the_url_are_as_asked(run: Run) -> None:
    status, out, _ = run("token", "alice", "--ttl", "1h30m", "--claim", "iss=me", "--claim", "aud=a=b", "--url")
    token, url = out.splitlines()
    found = claims(token)
    assert (status, url, found["iss"], found["aud"]) == (0, "https://h/alice", "me", "a=b")
    assert 5390 < found["exp"] - time.time() <= 5400


def test_a_user_is_found_by_id_on_whatever_page(run: Run, answers: Answers) -> None:
    pages = RESOURCES.format("users")
    answers[pages] = 200, {"items": [resource("bob", "bob")], "metadata": {"continue": "more"}}
    answers[pages + "more"] = 200, {"items": [resource("alice", "alice@example.com")], "metadata": {}}
    assert claims(run("token", "--user-id", "alice@example.com")[1].strip())["sub"] == "alice@example.com"
    status, out, err = run("token", "--user-id", "carol")
    assert (status, out) == (1, "")
    assert "there is no UserRealtime with userId 'carol' in namespace users" in err


def test_the_namespace_is_that_of_the_context_unless_named(run: Run) -> None:
    assert run("--context", "bare", "token", "alice")[2].startswith(
        "userrealtime: there is no UserRealtime 'alice' in namespace default"
    )
    assert run("--context", "bare", "--namespace", "users", "token", "alice")[0] == 0


def test_a_pod_that_is_not_ready_is_a_note(run: Run, answers: Answers) -> None:
    answers[ALICE] = 200, resource("alice", "alice", ready="False")
    status, out, err = run("token", "alice")
    assert (status, claims(out.strip())["sub"]) == (0, "alice")
    assert err == "note: alice is not ready (PodNotReady: the pod is not ready yet)\n"


@pytest.mark.parametrize(
    ("path", "answer", "complaint"),
    [
        (ALICE, refusal(404, 'userrealtimes "alice" not found', name="alice"), "there is no UserRealtime 'alice'"),
        (ALICE, (404, "404 page not found"), "is userrealtime installed?"),
        (ALICE, (200, "hello, I am a proxy"), "the API server rejected the request for userrealtimes alice: "),
        (ALICE, refusal(401, "Unauthorized"), "log in again"),
        (ALICE, refusal(500, "etcd is away"), "rejected the request for userrealtimes alice: etcd is away"),
        (ALICE, (200, {"metadata": {"name": "alice"}, "spec": {"userId": "a"}}), "alice has no key yet: the operator"),
        (SECRET, refusal(403, 'secrets "urt-alice" is forbidden: User "me" cannot get'), "permission denied; "),
        (
            SECRET,
            refusal(404, 'secrets "urt-alice" not found', name="urt-alice"),
            "the Secret urt-alice does not exist",
        ),
        (SECRET, (200, {"metadata": {"name": "urt-alice"}, "data": {}}), "the Secret urt-alice has no valid TOKEN_KEY"),
    ],
)
def test_what_stands_in_the_way_is_told(
    run: Run, answers: Answers, path: str, answer: tuple[int, Any], complaint: str
) -> None:
    answers[path] = answer
    status, out, err = run("token", "alice")
    assert (status, out) == (1, "")
    assert err.startswith("userrealtime: ")
    assert complaint in err


def test_a_url_that_is_not_there_is_told(run: Run, answers: Answers) -> None:
    answers[ALICE] = 200, resource("alice", "alice", url=None)
    status, out, err = run("token", "alice", "--url")
    assert (status, out) == (1, "")
    assert "alice has no URL" in err


def test_a_cluster_that_does_not_answer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kubeconfig(tmp_path / "kubeconfig", 1)
    assert main(["--kubeconfig", str(tmp_path / "kubeconfig"), "token", "alice"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("userrealtime: no answer from the API server http://127.0.0.1:1: ")
    assert "refused" in complaint


@pytest.mark.parametrize(("file", "context"), [("none", None), ("kubeconfig", "elsewhere")])
def test_a_kubeconfig_that_cannot_be_used_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, context: str | None
) -> None:
    kubeconfig(tmp_path / "kubeconfig", 1)
    arguments = ["--kubeconfig", str(tmp_path / file), *(["--context", context] if context else []), "token", "alice"]
    assert main(arguments) == 1
    assert "no usable kubeconfig" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("token",), "one of the arguments name --user-id is required"),
        (("token", "alice", "--user-id", "alice"), "not allowed with"),
        (("token", "alice", "--ttl", "tomorrow"), "'tomorrow' is not a duration such as"),
        (("token", "alice", "--ttl", "0"), "from 1 second to 1 year"),
        (("token", "alice", "--claim", "exp=1"), "which this command sets"),
        (("token", "alice", "--claim", "iss"), "is not NAME=VALUE"),
        ((), "COMMAND"),
    ],
)
def test_wrong_usage_is_explained(
    arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_default_is_an_hour() -> None:
    assert ttl("1h") == 3600
