"""Why a token is not accepted, or not yet."""

from __future__ import annotations


class Unauthorized(Exception):
    """A token that is not accepted. The message names the rule it broke; it never contains the token or its claims."""


class KeySetStale(Exception):
    """The token cannot be verified without the current keys of JWKS_URL: `refresh`, then verify it again. If this is
    raised again, the keys are unavailable."""
