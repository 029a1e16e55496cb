"""The choice of the connection that is closed when too many have no token."""

from __future__ import annotations

from functools import partial

from userrealtime_core.unauthenticated import Unauthenticated


def test_the_oldest_connection_is_closed_for_a_new_one() -> None:
    closed: list[str] = []
    counted: list[None] = []
    budget = Unauthenticated(2, lambda: counted.append(None))
    for name in ("first", "second", "third", "fourth"):
        budget.enter(name, partial(closed.append, name))
    assert closed == ["first", "second"]
    assert len(counted) == len(budget) == 2
    assert "first" not in budget
    assert "third" in budget


def test_a_connection_that_left_is_not_closed() -> None:
    closed: list[str] = []
    budget = Unauthenticated(1)
    budget.enter("authenticated", partial(closed.append, "authenticated"))
    assert budget.leave("authenticated")
    budget.enter("other", partial(closed.append, "other"))
    assert closed == []
    assert not budget.leave("authenticated")


def test_another_way_to_close_a_connection_does_not_make_it_younger() -> None:
    closed: list[str] = []
    budget = Unauthenticated(2)
    budget.enter("first", partial(closed.append, "as HTTP"))
    budget.enter("second", partial(closed.append, "second"))
    budget.enter("first", partial(closed.append, "as WebSocket"))
    budget.enter("third", partial(closed.append, "third"))
    assert closed == ["as WebSocket"]


def test_no_room_at_all_closes_every_connection() -> None:
    closed: list[str] = []
    Unauthenticated(0).enter("only", partial(closed.append, "only"))
    assert closed == ["only"]
