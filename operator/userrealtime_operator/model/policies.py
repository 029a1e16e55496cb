"""How long keys, events and messages are kept: the parts of the configuration that other packages apply."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from .settings import FILE, YEAR_S, Duration, Interval, Limit, Section, fault


@dataclass(frozen=True, config=FILE)
class KeyPolicy(Section):
    """When token keys are replaced, in seconds.

    `rotate_after_s` counts from the time at which a key begins to sign; with None, keys are replaced only on request.
    """

    rotate_after_s: Interval = None
    overlap_s: Annotated[float, Duration(60, YEAR_S)] = 24 * 3600
    # A kubelet refreshes mounted files within 90 s: its sync period, a minute by default, and up to half of it more.
    publish_ahead_s: Annotated[float, Duration(10, 3600)] = 120

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        if self.rotate_after_s is not None and self.rotate_after_s < self.overlap_s + self.publish_ahead_s:
            raise fault("rotateAfter", "must be at least the sum of overlap and publishAhead, or 0 for never")
        return self


@dataclass(frozen=True, config=FILE)
class InboxQuota(Section):
    """How many messages of one user, and how many bytes, can wait in the inbox; None is no limit.

    The same limits apply to the processed messages of a user.
    """

    max_messages: Limit = 10_000
    max_bytes: Limit = 64 * 2**20


@dataclass(frozen=True, config=FILE)
class Retention(Section):
    """How long events and messages are kept; None is forever.

    Events are deleted by age or number, messages by the time since they were processed.
    """

    max_age_s: Annotated[float | None, Duration(1)] = None
    max_events: Limit = None
    # Until then a repeated message is not stored again, so it is longer than a client is likely to repeat one.
    inbox_max_age_s: Interval = 7 * 24 * 3600
