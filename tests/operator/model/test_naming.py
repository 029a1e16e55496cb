"""Names for user ids of any shape."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userrealtime_operator.model.naming import (
    CREDENTIALS,
    CREDENTIALS_SUFFIX,
    SLICE_SUFFIX,
    child_name,
    child_of,
    kind_of,
    object_name,
    part_of,
)

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@given(st.text(min_size=1, max_size=253))
def test_every_user_id_gives_a_valid_name(user_id: str) -> None:
    assert DNS_LABEL.fullmatch(child_name(user_id))


@pytest.mark.parametrize(
    "user_ids",
    [
        ("alice", "Alice", "ALICE"),
        ("a.b@example.com", "a-b@example.com", "a_b@example.com", "a-b-example-com"),
        ("x" * 199 + "1", "x" * 199 + "2", "x" * 200),
        ("é", "è", "!", "?"),
    ],
)
def test_user_ids_that_look_alike_stay_distinct(user_ids: tuple[str, ...]) -> None:
    assert len({child_name(user_id) for user_id in user_ids}) == len(user_ids)


def test_the_name_begins_readably_and_never_changes() -> None:
    """Every object in every cluster is found by this name: another scheme needs a migration."""
    assert child_name("alice") == "urt-alice-fpmansl7byak"
    assert child_name("Ann.Lee@example.com") == "urt-ann-lee-example-com-p7tycvh7d4mi"
    assert child_name("é") == "urt-jkmvk7sagpbv"


@given(st.text(min_size=1, max_size=253) | st.sampled_from(["x-credentials", "a-activator", "-credentials"]))
def test_each_object_is_found_by_its_name(user_id: str) -> None:
    child = child_name(user_id)
    for part in ("Secret", CREDENTIALS, "Service", "EndpointSlice"):
        kind, name = kind_of(part), object_name(part, child)
        assert len(name) <= 253
        assert (part_of(kind, name), child_of(kind, name)) == (part, child)


def test_only_two_parts_have_another_name() -> None:
    assert object_name(CREDENTIALS, "urt-a") == "urt-a" + CREDENTIALS_SUFFIX
    assert object_name("EndpointSlice", "urt-a") == "urt-a" + SLICE_SUFFIX
    assert (kind_of(CREDENTIALS), part_of("Service", "urt-a" + CREDENTIALS_SUFFIX)) == ("Secret", "Service")
