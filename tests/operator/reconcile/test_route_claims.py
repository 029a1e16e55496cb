"""Which of two users gets a URL that overlaps that of the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userrealtime_operator.kube.types import NamespacedName
from userrealtime_operator.model.routes import parse_url
from userrealtime_operator.reconcile.route_claims import Rank, RouteClaims

ALICE, BOB, MALLORY = (NamespacedName("users", name) for name in ("alice", "bob", "mallory"))
OLD, NEW = "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"
TEMPLATE = Rank(custom=False, created=NEW, uid="of alice")
CUSTOM = Rank(custom=True, created=OLD, uid="of mallory")
URL = "https://realtime.example.com/urt-alice"


@pytest.mark.parametrize(
    ("url", "overlaps"),
    [
        (URL, True),
        (URL + "/", True),
        (URL + "/ws", True),
        (URL + "/a/b", True),
        ("https://realtime.example.com", True),
        ("http://realtime.example.com:8443/urt-alice", True),
        (URL + "x", False),
        ("https://realtime.example.com/urt", False),
        ("https://other.example.com/urt-alice", False),
        ("https://other.example.com", False),
    ],
)
@pytest.mark.parametrize("first", [ALICE, MALLORY], ids=["alice first", "mallory first"])
def test_a_url_of_the_template_has_precedence(url: str, overlaps: bool, first: NamespacedName) -> None:
    claims = RouteClaims()
    wanted = {ALICE: (URL, TEMPLATE), MALLORY: (url, CUSTOM)}
    second = MALLORY if first == ALICE else ALICE
    assert claims.put(first, parse_url(wanted[first][0]), wanted[first][1]) == set()
    affected = claims.put(second, parse_url(wanted[second][0]), wanted[second][1])
    assert affected == ({MALLORY} if overlaps and second == ALICE else set())
    assert claims.winner(ALICE) is None
    assert claims.winner(MALLORY) == (ALICE if overlaps else None)


def test_the_older_resource_has_precedence() -> None:
    claims = RouteClaims()
    claims.put(MALLORY, parse_url(URL), Rank(custom=True, created=NEW, uid="a"))
    claims.put(BOB, parse_url(URL), Rank(custom=True, created=OLD, uid="b"))
    assert claims.winner(MALLORY) == BOB
    assert claims.winner(BOB) is None


def test_a_url_is_free_when_its_user_leaves_or_changes() -> None:
    claims = RouteClaims()
    claims.put(ALICE, parse_url(URL), TEMPLATE)
    claims.put(MALLORY, parse_url(URL + "/ws"), CUSTOM)
    assert claims.put(ALICE, parse_url("https://a.example.com"), TEMPLATE) == {MALLORY}
    assert claims.winner(MALLORY) is None
    assert claims.put(ALICE, parse_url(URL), TEMPLATE) == {MALLORY}
    assert claims.winner(MALLORY) == ALICE
    assert claims.put(ALICE, parse_url(URL), TEMPLATE) == set()
    assert claims.put(ALICE, None, TEMPLATE) == {MALLORY}
    assert claims.remove(ALICE) == set()
    assert claims.winner(MALLORY) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.none() | st.lists(st.sampled_from("xy"), max_size=3),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_of_all_that_overlap_one_has_the_url(steps: list[tuple[str, list[str] | None, bool]]) -> None:
    claims = RouteClaims()
    known: dict[NamespacedName, tuple[str, Rank]] = {}
    for name, parts, custom in steps:
        user, rank = NamespacedName("users", name), Rank(custom, OLD, name)
        if parts is None:
            claims.remove(user)
            known.pop(user, None)
        else:
            path = "".join(f"/{part}" for part in parts)
            claims.put(user, parse_url(f"https://h{path}"), rank)
            known[user] = path, rank
    for user, (path, rank) in known.items():
        over = {
            each
            for each, (other, their) in known.items()
            if their < rank and (f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/"))
        }
        assert (claims.winner(user) in over) if over else (claims.winner(user) is None)
