"""How long keys, events and messages are kept: the parts of the configuration that other packages apply."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """When token keys are replaced, in seconds.

    `rotate_after_s` counts from the time at which a key begins to sign; with None, keys are replaced only on request.
    """

    rotate_after_s: float | None = None
    overlap_s: float = 24 * 3600
    # A kubelet refreshes mounted files within 90 s: its sync period, a minute by default, and up to half of it more.
    publish_ahead_s: float = 120


@dataclass(frozen=True, slots=True)
class Retention:
    """How long events and messages are kept; None is forever.

    Events are deleted by age or number, messages by the time since they were processed.
    """

    max_age_s: float | None = None
    max_events: int | None = None
    inbox_max_age_s: float | None = None
