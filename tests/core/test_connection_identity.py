"""The identity of a connection: only an activator with a key of the user can choose it."""

from __future__ import annotations

import hmac

import pytest

from userrealtime_core.auth.connection_identity import encode, parse

IDENTITY = "0123456789abcdef01234567"
KEY, OTHER = "a" * 40, "b" * 40


def test_a_signed_identity_is_known_by_each_key_of_the_user() -> None:
    value = encode(IDENTITY, (KEY, OTHER))
    assert parse(value, (KEY,)) == (IDENTITY, True)
    assert parse(value, (OTHER, KEY)) == (IDENTITY, True)
    assert parse(value, (OTHER,)) == (IDENTITY, False)
    assert parse(value, ()) == (IDENTITY, False)
    other = value.replace("0123", "0000", 1)
    assert parse(other, (KEY,)) == ("0000456789abcdef01234567", False)


def test_an_identity_without_a_signature_is_not_known() -> None:
    value = encode(IDENTITY, ())
    assert value == IDENTITY
    assert parse(value, (KEY,)) == (IDENTITY, False)


def test_a_signature_of_a_backend_is_none_of_an_identity() -> None:
    """A backend of Pusher signs texts that clients choose in part."""
    signed = hmac.digest(KEY.encode(), IDENTITY.encode(), "sha256").hex()
    assert parse(f"{IDENTITY};{signed}", (KEY,)) == (IDENTITY, False)


@pytest.mark.parametrize(
    "value", ["", "x", IDENTITY.upper(), IDENTITY[1:], f"{IDENTITY};", f"{IDENTITY};abc", "ü" * 24]
)
def test_other_values_have_no_identity(value: str) -> None:
    assert parse(value, (KEY,)) is None
