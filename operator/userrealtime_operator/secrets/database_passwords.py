"""Names and passwords of the database roles of relays. Pure: no database, no cluster.

A user has two names, used in turn: PostgreSQL knows one password a role, and while one pod replaces another, both must
be able to connect. A password is 256 random bits. The server is given a SCRAM verifier of it, so that it is in none of
the server's logs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote, unquote_plus, urlsplit, urlunsplit

from userrealtime_operator.kube.timestamps import parse_timestamp, rfc3339
from userrealtime_operator.model.labels import PASSWORD_ROTATION_ANNOTATION

SINCE = "userrealtime.dev/database-password-since"
ITERATIONS = 1
"""They make guessing slow, and 256 random bits cannot be guessed. PostgreSQL's own 4096 would cost its server 5 ms for
each role made, and both sides as much at each login."""
_OWN = ("user", "password", "passfile", "sslcert", "sslkey", "sslpassword")
"""Parameters of a URL that are of who it is for."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A role and its password, which is hidden from `repr`."""

    role: str
    password: str = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the password, in hex: tells passwords apart, and says nothing of one that is random."""
        return hashlib.sha256(self.password.encode()).hexdigest()

    def url(self, base: str) -> str:
        """A database's URL with these in the place of its own."""
        parts = urlsplit(base)
        address = parts.netloc.rpartition("@")[2]
        # A URL may also name them as parameters.
        options = (each for each in parts.query.split("&") if unquote_plus(each.partition("=")[0]) not in _OWN)
        netloc = f"{self.role}:{quote(self.password, safe='')}@{address}"
        return urlunsplit(parts._replace(netloc=netloc, query="&".join(options)))


def role_names(database: str, scope: str, user_id: str) -> tuple[str, str]:
    """The two names of a user's role. Roles belong to a whole server, so the database and the scope are in the hash."""
    digest = hashlib.sha256("\0".join((database, scope, user_id)).encode()).hexdigest()[:32]
    return f"urt_{digest}_a", f"urt_{digest}_b"


def read_credentials(secret: Mapping[str, Any] | None, key: str) -> Credentials | None:
    """Those in the URL that a Secret holds under `key`, None where it holds none."""
    try:
        text = base64.b64decode(((secret or {}).get("data") or {})[key], validate=True).decode()
        parts = urlsplit(text)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
    if not parts.username or not parts.password:
        return None
    return Credentials(unquote(parts.username), unquote(parts.password))


def scram_verifier(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """What PostgreSQL stores of an ASCII password (RFC 5803): it may be sent in its place."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *parts)


@dataclass(frozen=True, slots=True)
class Access:
    """The credentials that a Secret is to hold, and what its annotations are to say of them."""

    credentials: Credentials
    since: datetime
    honoured: str | None
    rotated: bool
    """Whether they are to take the place of good ones."""

    def annotations(self) -> dict[str, str]:
        """What the Secret says of them."""
        said = {SINCE: rfc3339(self.since), PASSWORD_ROTATION_ANNOTATION: self.honoured}
        return {name: text for name, text in said.items() if text is not None}


def choose_access(
    secret: Mapping[str, Any] | None,
    key: str,
    names: tuple[str, str],
    request: str | None,
    now: datetime,
    rotate_after_s: float | None,
    may_rotate: bool,
    random_text: Callable[[], str],
    last: str | None = None,
    lost: bool = False,
) -> tuple[Access, float | None]:
    """The credentials as they should be, from the Secret as it is; and the seconds after which to look again, None for
    never. A new password is one of the other role, so that pods with the old one can go on.

    Args:
        last: the role that the database knew last, where the Secret holds none.
        lost: whether the credentials of the Secret must not be used any more.
    """
    today = now.replace(microsecond=0)
    said = ((secret or {}).get("metadata") or {}).get("annotations") or {}
    held, honoured = read_credentials(secret, key), said.get(PASSWORD_ROTATION_ANNOTATION)
    if held is None or held.role not in names or not held.password.isascii() or lost:
        # Never the role before, which may be in the hands of somebody who can set its password.
        before = held.role if held is not None and held.role in names else last
        role = names[1 - names.index(before)] if before in names else names[0]
        return Access(Credentials(role, random_text()), today, request, rotated=False), rotate_after_s
    since = parse_timestamp(said.get(SINCE), today)
    due_s = None if rotate_after_s is None else rotate_after_s - (now - since) / timedelta(seconds=1)
    asked = request is not None and request != honoured
    if may_rotate and (asked or (due_s is not None and due_s <= 0)):
        other = names[1 - names.index(held.role)]
        fresh = Credentials(other, random_text())
        return Access(fresh, today, request if asked else honoured, rotated=True), rotate_after_s
    # What is due but may not be is looked at again when the rollout under way ends.
    wait = due_s if due_s is not None and due_s > 0 else None
    return Access(held, since, honoured, rotated=False), wait
