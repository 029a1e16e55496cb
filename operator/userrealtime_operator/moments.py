"""Moments as the API server and our own annotations write them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(moment: datetime, precision: str = "seconds") -> str:
    """A moment in UTC, as the API server writes it."""
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def past(text: str | None, now: datetime) -> datetime:
    """The moment, to the second, that an annotation names; `now` if it names none, or one that is still to come."""
    try:
        return min(datetime.fromisoformat(text or "").astimezone(UTC).replace(microsecond=0), now)
    except (ValueError, OverflowError):
        return now
