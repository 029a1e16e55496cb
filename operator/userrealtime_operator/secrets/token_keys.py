"""How a user's token key is replaced without a token being refused or a pod restarted. Pure: no cluster, no clock.

The user's Secret holds `TOKEN_KEY`, with which tokens are signed, and at most one more. The pods accept both.

1. A new key appears as `TOKEN_KEY_NEXT`. Nobody signs with it yet: the kubelets bring it to the pods.
2. After `publish_ahead_s` it becomes `TOKEN_KEY`, and the one before `TOKEN_KEY_PREVIOUS`. The two keys are those of
   step 1, so pods accept whatever was and is signed, whichever of the two states they have seen.
3. After `overlap_s` the previous key goes.

Which step it is, is told by the names in the Secret; since when, by its annotations. So whoever looks at a Secret knows
all there is to know: an operator that was restarted repeats nothing. A time that is missing or lies in the future
counts as now, which makes a key live longer, never shorter.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

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

# What the relay accepts as an HS256 key.
KEY_BYTES = range(32, 4097)


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """A user's keys and what is known of them, all hidden from `repr`. Only one of `next` and `previous` is there.

    `series` is random, and stays as long as keys follow each other in order. A new one means that no token from before
    is good any more.
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
        """What the Secret holds of them."""
        named = {TOKEN_KEY: self.current, NEXT: self.next, PREVIOUS: self.previous}
        return {name: key for name, key in named.items() if key is not None}

    def annotations(self) -> dict[str, str]:
        """What the Secret says of them."""
        said = {
            SIGNS_SINCE: rfc3339(self.signs_since),
            PUBLISHED_AT: None if self.published_at is None else rfc3339(self.published_at),
            SERIES: self.series,
            TOKEN_KEY_ROTATION_ANNOTATION: self.honoured,
        }
        return {name: text for name, text in said.items() if text is not None}


def advance(
    secret: Mapping[str, Any] | None,
    request: str | None,
    now: datetime,
    policy: KeyPolicy,
    random_text: Callable[[], str],
) -> tuple[TokenKeys, float | None]:
    """The keys as they should be, from the Secret as it is; and the seconds after which to look again, None for never.

    `request` is the value of the resource's annotation. `random_text` makes a new key of at least 32 bytes. The same
    keys come out unless something is due.
    """
    today = now.replace(microsecond=0)  # as the annotations have it
    keys = _healed(secret, request, today, random_text)
    asked = request is not None and request != keys.honoured
    if keys.published_at is not None and now >= keys.published_at + timedelta(seconds=policy.publish_ahead_s):
        assert keys.next is not None  # noqa: S101  (it has the time of its publication)
        keys = replace(keys, current=keys.next, signs_since=today, next=None, published_at=None, previous=keys.current)
    if keys.previous is not None and now >= keys.signs_since + timedelta(seconds=policy.overlap_s):
        keys = replace(keys, previous=None)
    if keys.next is not None:
        if asked:  # the key of which somebody wants to be rid is being replaced already
            keys = replace(keys, honoured=request)
    elif keys.previous is None and (asked or _is_old(keys, now, policy)):
        keys = replace(keys, next=random_text(), published_at=today, honoured=request if asked else keys.honoured)
    return keys, _wait(keys, now, policy)


def series_of(secret: Mapping[str, Any] | None) -> str | None:
    """The series that a Secret has, None if it has none."""
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
    """What a Secret says, whatever somebody has done to it."""
    data, said = (secret or {}).get("data") or {}, ((secret or {}).get("metadata") or {}).get("annotations") or {}
    current, following, previous = (_key(data.get(name)) for name in NAMES)
    honoured = said.get(TOKEN_KEY_ROTATION_ANNOTATION)
    if current is None:
        # One that the pods accept too is better than a new one.
        current, following, previous = following or previous, None, None if following is None else previous
    if current is None:
        return TokenKeys(random_text(), today, random_text(), honoured=request)
    if previous == current:
        previous = None
    if following is not None and (previous is not None or following == current):
        # Nothing was signed with the next key yet, so it can go; whoever asked for it is asked again.
        following, honoured = None, None
    return TokenKeys(
        current=current,
        signs_since=parse_timestamp(said.get(SIGNS_SINCE), today),
        series=said.get(SERIES) or random_text(),
        honoured=honoured,
        next=following,
        published_at=None if following is None else parse_timestamp(said.get(PUBLISHED_AT), today),
        previous=previous,
    )


def _key(value: object) -> str | None:
    """A key from a Secret's data, None if it is none. A line's end does not count, as in the relay."""
    if not isinstance(value, str):
        return None
    try:
        content = base64.b64decode(value, validate=True).rstrip(b"\r\n")
        return content.decode() if len(content) in KEY_BYTES else None
    except (binascii.Error, UnicodeDecodeError):
        return None
