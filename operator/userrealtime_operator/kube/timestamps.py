"""Moments as the API server and our own annotations write them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(moment: datetime, precision: str = "seconds") -> str:
    """A moment in UTC, as the API server writes it."""
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def parse_timestamp(text: str | None, now: datetime, *, to_the_second: bool = True) -> datetime:
    """The moment that an annotation or a status names; `now` if it names none, or one that is still to come."""
    try:
        moment = datetime.fromisoformat(text or "").astimezone(UTC)
    except (ValueError, OverflowError):
        return now
    return min(moment.replace(microsecond=0) if to_the_second else moment, now)
