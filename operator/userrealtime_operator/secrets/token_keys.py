"""The rotation of a user's token key, which rejects no valid token and restarts no pod. Pure: no cluster, no clock.

The user's Secret contains `TOKEN_KEY`, which signs tokens, and at most one more key. The pods accept both.

1. A new key is published as `TOKEN_KEY_NEXT`. It signs nothing yet, while the kubelets copy it to the pods.
2. After `publish_ahead_s` it becomes `TOKEN_KEY`, and the old key becomes `TOKEN_KEY_PREVIOUS`. These are the keys of
   step 1, so a pod accepts all tokens with the Secret of either step.
3. After `overlap_s` the previous key is removed.

The names in the Secret show the step, and its annotations show since when. Therefore the Secret is the whole state, and
an operator that restarts repeats nothing. A time that is missing or in the future counts as the current time, which can
only prolong the life of a key.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from userrealtime_core.auth.keys import validate_key
from userrealtime_operator.kube.timestamps import parse_timestamp, rfc3339
from userrealtime_operator.model.labels import TOKEN_KEY_ROTATION_ANNOTATION
from userrealtime_operator.model.policies import KeyPolicy

TOKEN_KEY = "TOKEN_KEY"  # noqa: S105  (the name of a key, not a key)
NEXT = "TOKEN_KEY_NEXT"
PREVIOUS = "TOKEN_KEY_PREVIOUS"
NAMES = (TOKEN_KEY, NEXT, PREVIOUS)

SIGNS_SINCE = "userrealtime.dev/token-key-signs-since"
PUBLISHED_AT = "userrealtime.dev/token-key-next-published-at"
SERIES = "userrealtime.dev/token-key-series"


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """A user's keys and their state, hidden from `repr`. At most one of `next` and `previous` is set.

    `series` is random. It changes only when a key is replaced without a rotation, which invalidates all older tokens.
    """

    current: str
    signs_since: datetime
    series: str
    honoured: str | None = None
    next: str | None = None
    published_at: datetime | None = None
    previous: str | None = None

    def __repr__(self) -> str:
        return "TokenKeys(...)"

    def data(self) -> dict[str, str]:
        """Return the keys as the data of the Secret."""
        named = {TOKEN_KEY: self.current, NEXT: self.next, PREVIOUS: self.previous}
        return {name: key for name, key in named.items() if key is not None}

    def annotations(self) -> dict[str, str]:
        """Return the state as annotations of the Secret."""
        texts = {
            SIGNS_SINCE: rfc3339(self.signs_since),
            PUBLISHED_AT: None if self.published_at is None else rfc3339(self.published_at),
            SERIES: self.series,
            TOKEN_KEY_ROTATION_ANNOTATION: self.honoured,
        }
        return {name: text for name, text in texts.items() if text is not None}


def advance(
    secret: Mapping[str, Any] | None,
    request: str | None,
    now: datetime,
    policy: KeyPolicy,
    random_text: Callable[[], str],
) -> tuple[TokenKeys, float | None]:
    """Return the desired keys for the current Secret, and the seconds until the next step, None without one.

    `request` is the value of the resource's annotation. `random_text` returns a new key of at least 32 bytes. The keys
    are unchanged unless a step is due.
    """
    today = now.replace(microsecond=0)  # the resolution of the annotations
    keys = _healed(secret, request, today, random_text)
    asked = request is not None and request != keys.honoured
    if keys.published_at is not None and now >= keys.published_at + timedelta(seconds=policy.publish_ahead_s):
        assert keys.next is not None  # noqa: S101  (it has the time of its publication)
        keys = replace(keys, current=keys.next, signs_since=today, next=None, published_at=None, previous=keys.current)
    if keys.previous is not None and now >= keys.signs_since + timedelta(seconds=policy.overlap_s):
        keys = replace(keys, previous=None)
    if keys.next is not None:
        if asked:  # the rotation in progress already replaces the key
            keys = replace(keys, honoured=request)
    elif keys.previous is None and (asked or _is_old(keys, now, policy)):
        keys = replace(keys, next=random_text(), published_at=today, honoured=request if asked else keys.honoured)
    return keys, _wait(keys, now, policy)


def series_of(secret: Mapping[str, Any] | None) -> str | None:
    """Return the series of a Secret, or None."""
    series: str | None = (((secret or {}).get("metadata") or {}).get("annotations") or {}).get(SERIES)
    return series


def _is_old(keys: TokenKeys, now: datetime, policy: KeyPolicy) -> bool:
    return policy.rotate_after_s is not None and now >= keys.signs_since + timedelta(seconds=policy.rotate_after_s)


def _wait(keys: TokenKeys, now: datetime, policy: KeyPolicy) -> float | None:
    if keys.published_at is not None:
        due = keys.published_at + timedelta(seconds=policy.publish_ahead_s)
    elif keys.previous is not None:
        due = keys.signs_since + timedelta(seconds=policy.overlap_s)
    elif policy.rotate_after_s is not None:
        due = keys.signs_since + timedelta(seconds=policy.rotate_after_s)
    else:
        return None
    return max(0.0, (due - now).total_seconds())


def _healed(
    secret: Mapping[str, Any] | None, request: str | None, today: datetime, random_text: Callable[[], str]
) -> TokenKeys:
    """Return the keys of a Secret, repaired if it was damaged."""
    data, notes = (secret or {}).get("data") or {}, ((secret or {}).get("metadata") or {}).get("annotations") or {}
    current, following, previous = (_key(data.get(name)) for name in NAMES)
    honoured = notes.get(TOKEN_KEY_ROTATION_ANNOTATION)
    if current is None:
        # The pods already accept these keys, so they are better than a new key.
        current, following, previous = following or previous, None, None if following is None else previous
    if current is None:
        return TokenKeys(random_text(), today, random_text(), honoured=request)
    if previous == current:
        previous = None
    if following is not None and (previous is not None or following == current):
        # The next key has not signed anything, so it can be removed. The request for it is processed again.
        following, honoured = None, None
    return TokenKeys(
        current=current,
        signs_since=parse_timestamp(notes.get(SIGNS_SINCE), today),
        series=notes.get(SERIES) or random_text(),
        honoured=honoured,
        next=following,
        published_at=None if following is None else parse_timestamp(notes.get(PUBLISHED_AT), today),
        previous=previous,
    )


def _key(value: object) -> str | None:
    """Return a valid key from a Secret's data, or None. A trailing line break is ignored, as in the relay."""
    if not isinstance(value, str):
        return None
    try:
        key = base64.b64decode(value, validate=True).rstrip(b"\r\n").decode()
        return key if validate_key(key) is None else None
    except (binascii.Error, UnicodeDecodeError):
        return None
