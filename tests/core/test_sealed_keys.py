"""Token keys that are encrypted for the activator."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userrealtime_core.auth.sealed_keys import BadSeal, Seal

KEY = "the key of the seal, which has enough bytes"
KEYS = {"TOKEN_KEY": "k" * 43, "TOKEN_KEY_PREVIOUS": "p" * 43}


@given(uid=st.text(), keys=st.dictionaries(st.text(), st.text()))
def test_sealed_keys_are_opened_for_their_resource(uid: str, keys: dict[str, str]) -> None:
    assert Seal(KEY).open(uid, Seal(KEY).seal(uid, keys)) == keys


def test_the_text_changes_only_with_the_keys() -> None:
    """An operator that restarts does not write the status of all users."""
    sealed = Seal(KEY).seal("uid", KEYS)
    assert Seal(KEY).seal("uid", dict(reversed(KEYS.items()))) == sealed
    assert Seal(KEY).seal("uid", {**KEYS, "TOKEN_KEY": "l" * 43}) != sealed
    assert Seal(KEY).seal("other", KEYS) != sealed
    assert Seal(KEY + "2").seal("uid", KEYS) != sealed


def test_another_key_or_resource_or_text_opens_nothing() -> None:
    sealed = Seal(KEY).seal("uid", KEYS)
    assert "kkk" not in base64.b64decode(sealed).decode("latin1")
    with pytest.raises(BadSeal):
        Seal(KEY + "2").open("uid", sealed)
    with pytest.raises(BadSeal):
        Seal(KEY).open("other", sealed)
    raw = base64.b64decode(sealed)
    changed = [raw[:index] + bytes([raw[index] ^ 1]) + raw[index + 1 :] for index in range(len(raw))]
    for each in (*changed, raw[:-1], raw + b"x", b"", b"x" * 16):
        with pytest.raises(BadSeal):
            Seal(KEY).open("uid", base64.b64encode(each).decode())
    for text in ("", "!", sealed[:-1], sealed + "="):
        with pytest.raises(BadSeal):
            Seal(KEY).open("uid", text)


@pytest.mark.parametrize("key", ["", "hunter2" * 4, "hunter2" * 1000])
def test_a_key_has_a_length_and_is_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="must have 32 to 4096 bytes") as caught:
        Seal(key)
    assert "hunter2" not in str(caught.value)
    assert KEY not in repr(Seal(KEY))
