"""Which tokens are accepted. PyJWT is not imported here: whether it needs `cryptography` depends on the settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """Which tokens are accepted. Times are in seconds; docs/relay.md has the table of the variables."""

    jwks_url: str | None = None
    allow_user_keys: bool = True
    """Whether HS256 tokens of the user's own keys are accepted. Otherwise, only those of the identity provider are."""
    token_issuer: str | None = None
    token_audience: str | None = None
    token_user_claim: str = "sub"  # noqa: S105 (a name)
    token_leeway: float = 5
    token_max_lifetime: float = 86400
    """Of a token, from its `iat` and from now until its `exp`."""
