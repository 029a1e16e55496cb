"""Names and passwords of the database roles of relays. Pure: no database, no cluster.

A user has two roles, which are used in turn: a role has one password in PostgreSQL, and while a pod is replaced, both
pods must be able to connect. A password has 256 random bits. The server receives only a SCRAM verifier of it, so its
logs never contain the password.
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
"""Iterations only slow down the guessing of weak passwords. PostgreSQL's default of 4096 would cost the server 5 ms for
each new role, and both sides as much at each login."""
_OWN = ("user", "password", "passfile", "sslcert", "sslkey", "sslpassword")
"""Parameters of a URL that belong to the role, and not to the database."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A role and its password, which is hidden from `repr`."""

    role: str
    password: str = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the password, in hex. It distinguishes passwords without revealing a random one."""
        return hashlib.sha256(self.password.encode()).hexdigest()

    def url(self, base: str) -> str:
        """Return the URL of a database with these credentials."""
        parts = urlsplit(base)
        address = parts.netloc.rpartition("@")[2]
        # A URL may also name them as parameters.
        options = (each for each in parts.query.split("&") if unquote_plus(each.partition("=")[0]) not in _OWN)
        netloc = f"{self.role}:{quote(self.password, safe='')}@{address}"
        return urlunsplit(parts._replace(netloc=netloc, query="&".join(options)))


def role_names(database: str, scope: str, user_id: str) -> tuple[str, str]:
    """Return the names of a user's two roles. Roles are global to a server, so the hash includes database and scope."""
    digest = hashlib.sha256("\0".join((database, scope, user_id)).encode()).hexdigest()[:32]
    return f"urt_{digest}_a", f"urt_{digest}_b"


def read_credentials(secret: Mapping[str, Any] | None, key: str) -> Credentials | None:
    """Return the credentials in the URL that a Secret contains under `key`, or None."""
    try:
        text = base64.b64decode(((secret or {}).get("data") or {})[key], validate=True).decode()
        parts = urlsplit(text)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
    if not parts.username or not parts.password:
        return None
    return Credentials(unquote(parts.username), unquote(parts.password))


def scram_verifier(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """Return the SCRAM verifier of an ASCII password (RFC 5803), which PostgreSQL accepts in place of the password."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *parts)


@dataclass(frozen=True, slots=True)
class Access:
    """The desired credentials of a Secret, and their state for its annotations."""

    credentials: Credentials
    since: datetime
    honoured: str | None
    rotated: bool
    """Whether they replace valid credentials."""
    reason: str = field(compare=False)
    """Why the database needs a role for them, for the audit log."""

    def annotations(self) -> dict[str, str]:
        """Return the state as annotations of the Secret."""
        texts = {SINCE: rfc3339(self.since), PASSWORD_ROTATION_ANNOTATION: self.honoured}
        return {name: text for name, text in texts.items() if text is not None}


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
    """Return the desired credentials for the current Secret, and the seconds until the next step, None without one.

    A new password belongs to the other role, because running pods still use the old role.

    Args:
        last: the latest role in the database, for a Secret without credentials.
        lost: whether the credentials of the Secret must be replaced, because they are compromised or rejected.
    """
    today = now.replace(microsecond=0)
    notes = ((secret or {}).get("metadata") or {}).get("annotations") or {}
    held, honoured = read_credentials(secret, key), notes.get(PASSWORD_ROTATION_ANNOTATION)
    if held is None or held.role not in names or not held.password.isascii() or lost:
        # Never the previous role: an attacker with its password can change the password.
        before = held.role if held is not None and held.role in names else last
        role = names[1 - names.index(before)] if before in names else names[0]
        reason = "new-secret" if held is None else "password-lost"
        return Access(Credentials(role, random_text()), today, request, rotated=False, reason=reason), rotate_after_s
    since = parse_timestamp(notes.get(SINCE), today)
    due_s = None if rotate_after_s is None else rotate_after_s - (now - since) / timedelta(seconds=1)
    asked = request is not None and request != honoured
    if may_rotate and (asked or (due_s is not None and due_s <= 0)):
        other = names[1 - names.index(held.role)]
        fresh = Credentials(other, random_text())
        reason, honoured = ("requested", request) if asked else ("scheduled", honoured)
        return Access(fresh, today, honoured, rotated=True, reason=reason), rotate_after_s
    # A rotation that is due but not permitted is checked again when the current rollout ends.
    wait = due_s if due_s is not None and due_s > 0 else None
    return Access(held, since, honoured, rotated=False, reason="existing-secret"), wait
