"""Names for user ids of any shape."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testing.operator.names import NAMES, NAMES_KEY, OPAQUE, child_name
from userrealtime_operator.model.naming import (
    CREDENTIALS,
    CREDENTIALS_SUFFIX,
    SLICE_SUFFIX,
    Naming,
    child_of,
    kind_of,
    object_name,
    part_of,
)

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@pytest.mark.parametrize("naming", [NAMES, OPAQUE])
@given(user_id=st.text(min_size=1, max_size=253))
def test_every_user_id_gives_a_valid_name(naming: Naming, user_id: str) -> None:
    assert DNS_LABEL.fullmatch(naming.child_name(user_id))


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
    for naming in (NAMES, OPAQUE):
        assert len({naming.child_name(user_id) for user_id in user_ids}) == len(user_ids)


def test_the_name_begins_readably_and_never_changes() -> None:
    """Every object in every cluster is found by this name: another scheme needs a migration."""
    assert child_name("alice") == "urt-alice-fpmansl7byak"
    assert child_name("Ann.Lee@example.com") == "urt-ann-lee-example-com-p7tycvh7d4mi"
    assert child_name("é") == "urt-jkmvk7sagpbv"


def test_an_opaque_name_is_an_hmac_of_the_user_id_and_never_changes() -> None:
    digest = hmac.new(NAMES_KEY.encode(), b"Ann.Lee@example.com", hashlib.sha256).digest()
    text = base64.b32encode(digest).decode().lower()
    assert OPAQUE.child_name("Ann.Lee@example.com") == f"urt-{text[:20]}"
    assert OPAQUE.child_name("alice") == "urt-5wgx3jwwlqtcpfz4qddk"
    assert Naming(NAMES_KEY).child_name("alice") == OPAQUE.child_name("alice")
    assert Naming(NAMES_KEY + "x").child_name("alice") != OPAQUE.child_name("alice")


@given(st.text(min_size=1, max_size=253))
def test_an_opaque_name_is_no_readable_name(user_id: str) -> None:
    """The objects of the two kinds of names cannot be confused while one replaces the other."""
    assert re.fullmatch("urt-[a-z2-7]{20}", OPAQUE.child_name(user_id))
    assert not re.fullmatch("urt-[a-z2-7]{20}", child_name(user_id))


@pytest.mark.parametrize("key", ["", "x" * 31, "é" * 15, "x" * 4097])
def test_the_key_has_a_length(key: str) -> None:
    with pytest.raises(ValueError, match="must have 32 to 4096 bytes, and has") as caught:
        Naming(key)
    assert "openssl rand -base64 32" in str(caught.value)
    assert not key or key not in str(caught.value)
    assert Naming("é" * 16).child_name("alice").startswith("urt-")


def test_the_key_is_not_in_the_repr() -> None:
    assert NAMES_KEY not in repr(OPAQUE)


@pytest.mark.parametrize("naming", [NAMES, OPAQUE])
@given(user_id=st.text(min_size=1, max_size=253) | st.sampled_from(["x-credentials", "a-activator", "-credentials"]))
def test_each_object_is_found_by_its_name(naming: Naming, user_id: str) -> None:
    child = naming.child_name(user_id)
    for part in ("Secret", CREDENTIALS, "Service", "EndpointSlice"):
        kind, name = kind_of(part), object_name(part, child)
        assert len(name) <= 253
        assert (part_of(kind, name), child_of(kind, name)) == (part, child)


def test_only_two_parts_have_another_name() -> None:
    assert object_name(CREDENTIALS, "urt-a") == "urt-a" + CREDENTIALS_SUFFIX
    assert object_name("EndpointSlice", "urt-a") == "urt-a" + SLICE_SUFFIX
    assert (kind_of(CREDENTIALS), part_of("Service", "urt-a" + CREDENTIALS_SUFFIX)) == ("Secret", "Service")
