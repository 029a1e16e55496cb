"""Timestamps in the format of the API server and of the operator's annotations. Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(moment: datetime, precision: str = "seconds") -> str:
    """Return a time in UTC in the format of the API server."""
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def parse_timestamp(text: str | None, now: datetime, *, to_the_second: bool = True) -> datetime:
    """Return the time in an annotation or a status; `now` if it is missing, invalid or in the future."""
    try:
        moment = datetime.fromisoformat(text or "").astimezone(UTC)
    except (ValueError, OverflowError):
        return now
    return min(moment.replace(microsecond=0) if to_the_second else moment, now)
