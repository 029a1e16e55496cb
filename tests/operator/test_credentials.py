"""Names, URLs and verifiers of roles. That PostgreSQL takes the verifiers is tested in `test_roles`."""

from __future__ import annotations

import base64
from urllib.parse import unquote, urlsplit

import pytest

from userrealtime_operator.credentials import Credentials, read_credentials, role_names, scram_verifier

BASE = "postgresql://operator:hunter2@db.example:5433/app?sslmode=require"


def test_names_are_of_a_database_a_scope_and_a_user() -> None:
    names = {
        name
        for place in (("app", "c/n", "alice"), ("b", "c/n", "alice"), ("app", "d/n", "alice"), ("app", "c/n", "bob"))
        for name in role_names(*place)
    }
    assert len(names) == 8
    assert all(len(name) < 63 and name.startswith("urt_") for name in names)


def test_a_url_has_the_role_and_nothing_of_the_operator() -> None:
    url = Credentials("urt_1_a", "p@ss/word:%").url(BASE)
    assert "operator" not in url
    assert "hunter2" not in url
    parts = urlsplit(url)
    assert (parts.hostname, parts.port, parts.path, parts.query) == ("db.example", 5433, "/app", "sslmode=require")
    assert unquote(parts.password or "") == "p@ss/word:%"
    secret = {"data": {"DATABASE_URL": base64.b64encode(url.encode()).decode()}}
    assert read_credentials(secret, "DATABASE_URL") == Credentials("urt_1_a", "p@ss/word:%")


@pytest.mark.parametrize(
    "secret", [None, {}, {"data": None}, {"data": {"U": "%%%"}}, {"data": {"U": "/w=="}}, {"data": {"U": "aGk="}}]
)
def test_what_is_no_url_has_no_credentials(secret: dict[str, object] | None) -> None:
    assert read_credentials(secret, "U") is None


def test_a_verifier_is_the_one_of_the_standard() -> None:
    # The example of RFC 7677: the user `user` with the password `pencil`. Its signature there proves the ServerKey.
    verifier = scram_verifier("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    assert verifier == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
        "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


def test_a_password_does_not_show() -> None:
    assert "hunter2" not in repr(Credentials("r", "hunter2"))
