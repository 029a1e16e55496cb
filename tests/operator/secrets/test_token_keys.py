"""The rotation of token keys: a state machine that operators evaluate at any time, across restarts."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from userrealtime_operator.model.labels import TOKEN_KEY_ROTATION_ANNOTATION
from userrealtime_operator.model.policies import KeyPolicy
from userrealtime_operator.secrets.token_keys import (
    NEXT,
    PREVIOUS,
    PUBLISHED_AT,
    SERIES,
    SIGNS_SINCE,
    TOKEN_KEY,
    TokenKeys,
    advance,
)

START = datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)
HOUR = 3600.0
POLICY = KeyPolicy(rotate_after_s=None, overlap_s=24 * HOUR, publish_ahead_s=120)
MONTHLY = KeyPolicy(rotate_after_s=720 * HOUR, overlap_s=24 * HOUR, publish_ahead_s=120)


def numbered() -> Callable[[], str]:
    """Return a generator of numbered keys instead of random ones."""
    numbers = itertools.count(1)
    return lambda: f"key number {next(numbers)} of those that were made"


def stored(keys: TokenKeys) -> dict[str, Any]:
    """The Secret that holds these keys."""
    data = {name: base64.b64encode(key.encode()).decode() for name, key in keys.data().items()}
    return {"metadata": {"annotations": keys.annotations()}, "data": data}


class Life:
    """One Secret over time. Every evaluation starts from the Secret only, as after a restart of the operator."""

    def __init__(self, policy: KeyPolicy = POLICY) -> None:
        self.policy = policy
        self.now = START
        self.request: str | None = None
        self.secret: dict[str, Any] | None = None
        self.random_text = numbered()

    def look(self, after_s: float = 0) -> tuple[TokenKeys, float | None]:
        self.now += timedelta(seconds=after_s)
        keys, wait = advance(self.secret, self.request, self.now, self.policy, self.random_text)
        self.secret = stored(keys)
        return keys, wait


def test_the_first_key() -> None:
    life = Life()
    life.request = "asked for before there was any"
    keys, wait = life.look()
    assert keys.data().keys() == {TOKEN_KEY}
    assert wait is None
    assert life.look(10_000 * HOUR)[0] == keys


def test_a_request_is_honoured_once_in_three_steps() -> None:
    life = Life()
    first, _ = life.look()
    life.request = "1"
    published, wait = life.look()
    assert (published.current, published.previous) == (first.current, None)
    assert published.next not in (None, first.current)
    assert wait == pytest.approx(120, abs=1)
    assert life.look(60)[0] == published
    switched, wait = life.look(60)
    assert (switched.current, switched.next, switched.previous) == (published.next, None, first.current)
    assert wait == pytest.approx(24 * HOUR, abs=1)
    assert life.look(23 * HOUR)[0] == switched
    last, wait = life.look(HOUR)
    assert last.data() == {TOKEN_KEY: switched.current}
    assert wait is None
    assert life.look(10_000 * HOUR)[0] == last
    assert last.series == first.series
    assert set(last.annotations()) == {SIGNS_SINCE, SERIES, TOKEN_KEY_ROTATION_ANNOTATION}


def test_a_request_during_the_overlap_waits_for_its_end() -> None:
    life = Life()
    life.look()
    life.request = "1"
    life.look()
    switched, _ = life.look(120)
    life.request = "2"
    assert life.look(HOUR)[0] == switched
    following, _ = life.look(23 * HOUR)
    assert (following.current, following.previous) == (switched.current, None)
    assert following.next is not None
    assert following.honoured == "2"


def test_a_request_during_a_rotation_is_fulfilled_by_it() -> None:
    life = Life()
    life.look()
    life.request = "1"
    published, _ = life.look()
    life.request = "2"
    again, _ = life.look(1)
    assert again.data() == published.data()
    assert again.honoured == "2"


def test_a_request_taken_back_and_made_again_is_the_same() -> None:
    life = Life()
    life.look()
    life.request = "1"
    life.look()
    life.look(120)
    done, _ = life.look(24 * HOUR)
    for request in (None, "1"):
        life.request = request
        assert life.look(HOUR)[0] == done


def test_on_schedule() -> None:
    life = Life(MONTHLY)
    first, wait = life.look()
    assert wait == pytest.approx(720 * HOUR, abs=1)
    assert life.look(719 * HOUR)[0] == first
    assert life.look(HOUR)[0].next is not None
    switched, _ = life.look(120)
    last, wait = life.look(24 * HOUR)
    assert last.data() == {TOKEN_KEY: switched.current}
    assert wait == pytest.approx(696 * HOUR, abs=1)


def test_waits_end_where_something_is_due() -> None:
    life = Life(MONTHLY)
    keys = []
    for _ in range(12):
        found, wait = life.look()
        assert wait is not None
        keys.append(found)
        life.now += timedelta(seconds=wait)
    assert all(one != other for one, other in itertools.pairwise(keys))


def test_a_changed_schedule_counts_from_the_keys_first_use() -> None:
    life = Life()
    life.look()
    assert life.look(800 * HOUR)[0].next is None
    life.policy = MONTHLY
    assert life.look()[0].next is not None


def test_no_key_shows_in_a_repr() -> None:
    assert "number" not in repr(Life().look()[0])


GOOD = [base64.b64encode(f"another key, number {n}, long enough".encode()).decode() for n in range(2)]
VALUES = st.sampled_from([None, "", "!", "/w==", base64.b64encode(b"short").decode(), *GOOD])
TIMES = st.sampled_from([None, "", "yesterday", "2099-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "2026-01-01"])


@pytest.mark.parametrize("name", [TOKEN_KEY, NEXT, PREVIOUS])
def test_a_line_end_after_a_key_does_not_count(name: str) -> None:
    life = Life()
    life.look()
    assert life.secret is not None
    life.secret["data"] |= {name: base64.b64encode(b"a key out of a file, with a line end\n").decode()}
    assert life.look()[0].data()[name] == "a key out of a file, with a line end"


@example({TOKEN_KEY: GOOD[0]}, {SIGNS_SINCE: "2099-01-01T00:00:00Z"}, None)
@example({TOKEN_KEY: GOOD[0], NEXT: GOOD[1]}, {PUBLISHED_AT: "2099-01-01T00:00:00Z"}, None)
@example({TOKEN_KEY: "!", PREVIOUS: GOOD[1]}, {}, None)
@given(
    st.dictionaries(st.sampled_from([TOKEN_KEY, NEXT, PREVIOUS]), VALUES),
    st.dictionaries(st.sampled_from([SIGNS_SINCE, PUBLISHED_AT, SERIES, TOKEN_KEY_ROTATION_ANNOTATION]), TIMES),
    st.sampled_from([None, "1"]),
)
def test_a_damaged_secret_heals(data: dict[str, Any], said: dict[str, Any], request: str | None) -> None:
    life = Life(MONTHLY)
    life.request = request
    life.secret = {"metadata": {"annotations": said}, "data": data}
    good = [value for name in (TOKEN_KEY, NEXT, PREVIOUS) if (value := data.get(name)) in GOOD]
    keys, wait = life.look()
    assert 1 <= len(keys.data()) <= 2
    assert wait is not None
    # A key that the pods know signs, if there is one.
    if good:
        known = {base64.b64decode(value).decode() for value in good}
        assert keys.current in known
    # A second evaluation changes nothing, and no time is in the future.
    assert life.look()[0] == keys
    assert keys.signs_since <= START
    assert len({*keys.data().values()}) == len(keys.data())
    # The rotation continues from there as usual.
    life.request = "another"
    for _ in range(8):
        keys, wait = life.look(wait or 0)
    assert keys.honoured == "another"


class Witness:
    """The versions of a Secret that pods and signers have read over time, and what must hold for them."""

    def __init__(self) -> None:
        self.published: dict[str, datetime] = {}
        self.last_signed: dict[str, datetime] = {}
        self.keys: TokenKeys | None = None

    def see(self, keys: TokenKeys, now: datetime, policy: KeyPolicy) -> None:
        there = set(keys.data().values())
        assert len(there) == len(keys.data()) <= 2
        slack = timedelta(seconds=1)  # times are stored in whole seconds
        before = self.keys
        if before is not None:
            if keys.current != before.current:
                seen = now - self.published[keys.current]
                assert seen >= timedelta(seconds=policy.publish_ahead_s) - slack, "it signed before it was published"
            for key in set(before.data().values()) - there:
                idle = now - self.last_signed[key]
                assert idle >= timedelta(seconds=policy.overlap_s) - slack, "dropped before its overlap"
            assert keys.series == before.series
            if before.current != keys.current:
                self.last_signed[before.current] = now
        for key in there:
            self.published.setdefault(key, now)
        self.keys = keys


# Seconds until the next evaluation, or after the time at which a step is due.
moments = st.one_of(
    st.tuples(st.just("from now"), st.one_of(st.floats(0, 5), st.floats(0, 200), st.floats(0, 800 * HOUR))),
    st.tuples(st.just("from due"), st.sampled_from([-2.0, -0.5, 0.0, 30.0])),
)
steps = st.lists(
    st.tuples(
        moments,
        st.sampled_from(["as it was", None, "1", "2", "3"]),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(steps, st.sampled_from([POLICY, MONTHLY, KeyPolicy(HOUR, 600, 60), KeyPolicy(None, 60.5, 10.25)]))
def test_at_most_two_keys_and_none_gone_or_signing_too_early(
    steps: list[tuple[tuple[str, float], str | None, bool]], policy: KeyPolicy
) -> None:
    """Evaluated at any times, with any requests, and with writes that sometimes fail."""
    life, witness = Life(policy), Witness()
    keys, wait = life.look()
    witness.see(keys, life.now, policy)
    for (origin, seconds), request, write_fails in steps:
        if request != "as it was":
            life.request = request
        before = life.secret
        keys, wait = life.look(max(0.0, seconds + (wait or 0 if origin == "from due" else 0)))
        assert wait is None or wait > 0
        if write_fails:
            life.secret = before
            continue
        again, _ = life.look()
        assert again == keys, "a restart repeated something"
        witness.see(keys, life.now, policy)
    # The last request is fulfilled in the end.
    for _ in range(3):
        life.look(policy.overlap_s + policy.publish_ahead_s + 1)
    assert life.request in (None, life.look()[0].honoured)
