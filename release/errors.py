"""Errors of this package."""


class ReleaseError(Exception):
    """A release cannot be made. The message lists every reason, with advice."""
