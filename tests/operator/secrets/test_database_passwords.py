"""Names, URLs and verifiers of roles. `test_roles` tests that PostgreSQL accepts the verifiers."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from userrealtime_operator.secrets.database_passwords import (
    Access,
    Credentials,
    choose_access,
    read_credentials,
    role_names,
    scram_verifier,
)

BASE = "postgresql://operator:hunter2@db.example:5433/app?sslmode=require"


def test_names_are_of_a_database_a_scope_and_a_user() -> None:
    names = {
        name
        for place in (("app", "c/n", "alice"), ("b", "c/n", "alice"), ("app", "d/n", "alice"), ("app", "c/n", "bob"))
        for name in role_names(*place)
    }
    assert len(names) == 8
    assert all(len(name) < 63 and name.startswith("urt_") for name in names)


@pytest.mark.parametrize(
    "base",
    [
        BASE,
        "postgresql://db.example:5433/app?user=operator&sslmode=require&password=hunter2",
        "postgresql://operator@db.example:5433/app?pass%77ord=hunter2&sslmode=require&sslpassword=hunter2",
    ],
)
def test_a_url_has_the_role_and_nothing_of_the_operator(base: str) -> None:
    url = Credentials("urt_1_a", "p@ss/word:%").url(base)
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
    verifier = scram_verifier("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), iterations=4096)
    assert verifier == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
        "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


def test_a_password_does_not_show() -> None:
    assert "hunter2" not in repr(Credentials("r", "hunter2"))


class Chooser:
    """Call `choose_access` on a Secret with the previous choice."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, tzinfo=UTC)
        self.secret: dict[str, Any] | None = None
        self.made = 0

    def random_text(self) -> str:
        self.made += 1
        return f"password-{self.made}"

    def choose(self, request: str | None = None, *, after: float | None = None, may: bool = True) -> Access:
        access, self.wait = choose_access(
            self.secret, "U", ("urt_a", "urt_b"), request, self.now, after, may, self.random_text
        )
        url = access.credentials.url(BASE).encode()
        self.secret = {
            "data": {"U": base64.b64encode(url).decode()},
            "metadata": {"annotations": access.annotations()},
        }
        return access


def test_credentials_stay_until_a_new_password_is_asked_for() -> None:
    chooser = Chooser()
    first = chooser.choose()
    assert chooser.choose() == first
    assert not chooser.choose("now", may=False).rotated
    second = chooser.choose("now")
    assert second.rotated
    assert second.credentials == Credentials("urt_b", "password-2")
    assert chooser.choose("now").credentials == second.credentials
    assert chooser.choose("again").credentials == Credentials("urt_a", "password-3")


def test_an_old_password_is_replaced() -> None:
    chooser = Chooser()
    first = chooser.choose(after=3600)
    assert chooser.wait == 3600
    chooser.now += timedelta(minutes=50)
    assert chooser.choose(after=3600).credentials == first.credentials
    assert chooser.wait == 600
    chooser.now += timedelta(minutes=10)
    assert chooser.choose(after=3600).credentials.role == "urt_b"
    assert chooser.wait == 3600


def test_what_a_secret_holds_of_another_role_is_replaced() -> None:
    chooser = Chooser()
    chooser.secret = {"data": {"U": base64.b64encode(BASE.encode()).decode()}}
    access = chooser.choose("from before")
    assert access.credentials.role == "urt_a"
    assert not access.rotated
    assert not chooser.choose("from before").rotated


def test_lost_credentials_are_replaced_by_the_other_role() -> None:
    now, names = datetime(2026, 1, 2, tzinfo=UTC), ("urt_a", "urt_b")

    def chosen(secret: dict[str, Any] | None, last: str | None, *, lost: bool) -> Credentials:
        access, _ = choose_access(secret, "U", names, None, now, None, False, lambda: "fresh", last, lost)
        return access.credentials

    for last, expected in ((None, "urt_a"), ("urt_a", "urt_b"), ("urt_b", "urt_a")):
        assert chosen(None, last, lost=True) == Credentials(expected, "fresh")
    for held, expected in (("urt_a", "urt_b"), ("urt_b", "urt_a")):
        url = Credentials(held, "old").url(BASE).encode()
        secret = {"data": {"U": base64.b64encode(url).decode()}}
        assert chosen(secret, None, lost=True) == Credentials(expected, "fresh")
        assert chosen(secret, None, lost=False) == Credentials(held, "old")
