"""The verification of tokens, with keys that are read only when they are needed."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Any

import pytest

from testing.operator.activator import secret
from testing.operator.names import child_name
from testing.relay.harness import KEY, token
from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_operator.activator import tokens
from userrealtime_operator.activator.routes import Route
from userrealtime_operator.activator.tokens import Tokens, keys_in
from userrealtime_operator.kube.types import NamespacedName

ALICE = Route(NamespacedName("users", "alice"), "alice", "", child_name("alice"))
BOB = Route(NamespacedName("users", "bob"), "bob", "", child_name("bob"))
OTHER = "another key of this user's that is long"
THIRD = "the key before, which is long enough too"


class Vault:
    """The Secrets of users. `reads` counts how often one was read."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.reads = 0
        self.away = False

    async def read(self, _: Route) -> dict[str, Any]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.away:
            raise OSError("no answer")
        return secret(*self.keys)


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that advances the clock of the module."""
    now = [1000.0]
    monkeypatch.setattr(tokens.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]

    def later(seconds: float) -> None:
        now[0] += seconds

    return later


async def test_a_token_that_no_key_would_make_good_reads_no_secret() -> None:
    vault = Vault(KEY)
    checked = Tokens(RelaySettings.from_environment({}), vault.read)
    for bad in ("", "a.b.c", token(sub="bob"), token(life_s=-60), token(life_s=10**6)):
        with pytest.raises(Unauthorized):
            await checked.check(ALICE, bad)
    assert vault.reads == 0
    await checked.check(ALICE, token())
    assert vault.reads == 1


async def test_all_three_keys_are_good_and_only_for_their_user() -> None:
    checked = Tokens(RelaySettings.from_environment({}), Vault(KEY, OTHER, THIRD).read)
    for key in (KEY, OTHER, THIRD):
        await checked.check(ALICE, token(key=key))
        with pytest.raises(Unauthorized):
            await checked.check(BOB, token(key=key))
    with pytest.raises(Unauthorized):
        await checked.check(ALICE, token(key="a stranger's key that is long enough"))


async def test_the_settings_of_relays_hold() -> None:
    checked = Tokens(RelaySettings.from_environment({"TOKEN_ISSUER": "https://issuer.example.com"}), Vault(KEY).read)
    await checked.check(ALICE, token(iss="https://issuer.example.com"))
    with pytest.raises(Unauthorized):
        await checked.check(ALICE, token())


async def test_a_hundred_clients_cost_one_read() -> None:
    vault = Vault(KEY)
    checked = Tokens(RelaySettings.from_environment({}), vault.read)
    await asyncio.gather(*(checked.check(ALICE, token()) for _ in range(100)))
    assert vault.reads == 1


async def test_a_new_key_is_found_and_a_stranger_causes_few_reads(pass_time: Callable[[float], None]) -> None:
    vault = Vault(KEY)
    checked = Tokens(RelaySettings.from_environment({}), vault.read)
    await checked.check(ALICE, token())
    vault.keys = (OTHER,)
    for _ in range(10):
        with pytest.raises(Unauthorized):
            await checked.check(ALICE, token(key=OTHER))
    assert vault.reads == 1
    pass_time(tokens.COOLDOWN_S)
    await checked.check(ALICE, token(key=OTHER))
    assert vault.reads == 2
    with pytest.raises(Unauthorized):
        await checked.check(ALICE, token(key=KEY))
    assert vault.reads == 2


async def test_keys_are_read_again_after_their_time(pass_time: Callable[[float], None]) -> None:
    vault = Vault(KEY)
    checked = Tokens(RelaySettings.from_environment({}), vault.read)
    await checked.check(ALICE, token())
    vault.keys = (OTHER,)
    pass_time(tokens.LIFETIME_S + 1)
    with pytest.raises(Unauthorized):
        await checked.check(ALICE, token())


async def test_keys_that_cannot_be_read_leave_it_open() -> None:
    vault = Vault(KEY)
    vault.away = True
    checked = Tokens(RelaySettings.from_environment({}), vault.read)
    with pytest.raises(KeySetStale):
        await checked.check(ALICE, token())
    vault.away = False
    await checked.check(ALICE, token())


async def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_USERS", 1)
    vault = Vault(KEY)
    checked = Tokens(RelaySettings.from_environment({}), vault.read)
    for route, sub in ((ALICE, "alice"), (BOB, "bob"), (ALICE, "alice")):
        await checked.check(route, token(sub=sub))
    assert vault.reads == 3


async def test_without_users_keys_none_of_their_tokens_is_good() -> None:
    common = RelaySettings.from_environment({"JWKS_URL": "http://127.0.0.1:1/jwks.json", "TOKEN_AUDIENCE": "*"})
    with pytest.raises(Unauthorized):
        await Tokens(common, None).check(ALICE, token())


def test_what_is_no_key_is_passed_over() -> None:
    assert keys_in(None)() == ()
    assert keys_in({"data": {"TOKEN_KEY": "?"}})() == ()
    assert keys_in(secret("short", OTHER))() == (OTHER,)
    assert keys_in(secret(KEY + "\n"))() == (KEY,)


async def test_a_token_is_verified_with_cached_keys(pass_time: Callable[[float], None]) -> None:
    vault = Vault(KEY)
    checked = Tokens(RelaySettings.from_environment({}), vault.read)
    with pytest.raises(KeySetStale):
        checked.verify(ALICE, token())
    await checked.refresh(ALICE)
    assert 0 < checked.verify(ALICE, token(life_s=100)) <= 105
    for bad in ("", "a.b.c", token(sub="bob"), token(life_s=-60)):
        with pytest.raises(Unauthorized):
            checked.verify(ALICE, bad)
    # The keys were read a moment ago, so no newer ones exist.
    with pytest.raises(Unauthorized):
        checked.verify(ALICE, token(key=OTHER))
    pass_time(tokens.COOLDOWN_S)
    with pytest.raises(KeySetStale):
        checked.verify(ALICE, token(key=OTHER))
    vault.keys = (OTHER, KEY)
    await checked.refresh(ALICE)
    assert checked.verify(ALICE, token(key=OTHER)) > 0
    pass_time(tokens.LIFETIME_S + 1)
    with pytest.raises(KeySetStale):
        checked.verify(ALICE, token())
    vault.away = True
    await checked.refresh(ALICE)
    with pytest.raises(KeySetStale):
        checked.verify(ALICE, token())
    assert vault.reads == 3


async def test_signatures_are_checked_with_the_same_keys(pass_time: Callable[[float], None]) -> None:
    def sign(key: str) -> str:
        return hmac.digest(key.encode(), b"1.2:private-log", "sha256").hex()

    vault = Vault(KEY)
    checked = Tokens(RelaySettings.from_environment({}), vault.read)
    assert checked.cached_keys(ALICE) == ()
    await checked.check_signature(ALICE, "1.2:private-log", sign(KEY))
    assert checked.cached_keys(ALICE) == (KEY,)
    for content, signature in (("1.3:private-log", sign(KEY)), ("1.2:private-log", sign(OTHER))):
        with pytest.raises(Unauthorized):
            await checked.check_signature(ALICE, content, signature)
    assert vault.reads == 1, "a wrong signature causes no further read for some seconds"
    vault.keys = (OTHER,)
    pass_time(tokens.COOLDOWN_S)
    await checked.check_signature(ALICE, "1.2:private-log", sign(OTHER))
    assert checked.cached_keys(ALICE) == (OTHER,)
    vault.away = True
    pass_time(tokens.LIFETIME_S + 1)
    with pytest.raises(KeySetStale):
        await checked.check_signature(ALICE, "1.2:private-log", sign(OTHER))
    without_keys = Tokens(RelaySettings.from_environment({}), None)
    with pytest.raises(Unauthorized):
        await without_keys.check_signature(ALICE, "1.2:private-log", sign(OTHER))
