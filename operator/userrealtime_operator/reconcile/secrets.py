"""The contents of users' Secrets, and the database roles that they give access to.

A user has two: one with the token keys, and one with the URLs of the database and of the broker.

A Secret holds values that cannot be computed again. So it is read from the API server before it is replaced, and the
write fails if it has changed since: two outdated caches never both write it.
"""

from __future__ import annotations

import logging
import secrets as random_source
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from userrealtime_operator.config import Config, CredentialsType
from userrealtime_operator.kube.client import Api
from userrealtime_operator.kube.types import Object
from userrealtime_operator.manifests.metadata import digest
from userrealtime_operator.manifests.secrets import DATABASE_URL, SERIES_DIGEST, Secrets
from userrealtime_operator.model.conditions import ConditionResult
from userrealtime_operator.model.naming import CREDENTIALS, SECRET, object_name
from userrealtime_operator.model.resource import UserRealtime
from userrealtime_operator.postgres.database import DatabaseError
from userrealtime_operator.postgres.roles import PasswordChanged, RoleCause, Roles
from userrealtime_operator.secrets.database_passwords import Access, choose_access, read_credentials, role_names
from userrealtime_operator.secrets.token_keys import advance, series_of

from .children import ChildWriter, Live, check_owner, is_up_to_date, owner_uid

logger = logging.getLogger(__name__)

TOKEN_KEY_BYTES: Final = 32
PARTS: Final = (SECRET, CREDENTIALS)
"""The two Secrets of a user, in the order of their manifests."""


def random_text() -> str:
    """Return 256 random bits as URL-safe text, for example as a new HS256 key."""
    return random_source.token_urlsafe(TOKEN_KEY_BYTES)


def own_secret(resource: UserRealtime, part: str, live: Live) -> Live:
    """Return a Secret whose contents the resource keeps, None for a Secret of another creator, who knows its contents.

    A resource keeps the contents of its own Secrets, and of a Secret with keys whose uid its annotation names.
    """
    if live is None or owner_uid(live) == resource.uid:
        return live
    if part == CREDENTIALS:
        return None
    adopted = resource.adopted_secret
    return live if adopted is not None and live["metadata"].get("uid") == adopted else None


@dataclass(frozen=True, slots=True)
class Contents:
    """What the Secrets of a user must contain."""

    secrets: Secrets
    access: Access | None
    """The pods' own role and password; None with shared credentials."""
    due_s: float | None
    """The seconds after which the next step of a rotation is due."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The stored Secrets of a user, and their desired contents."""

    live: Mapping[str, Live]
    """The Secrets, by part."""
    contents: Contents
    problem: ConditionResult | None
    """Why the database does not have the pods' role."""
    replaces_password: bool
    """Whether the password is replaced because another party has changed it."""


class SecretKeeper:
    """Keeps the Secrets of all users, and the roles in the database. `roles` is None with shared credentials."""

    def __init__(self, config: Config, api: Api, roles: Roles | None, now: Callable[[], datetime]) -> None:
        self._config = config
        self._api = api
        self._roles = roles
        self._now = now
        self._writer = ChildWriter(api)
        self._ensured: dict[str, tuple[str, int, str]] = {}
        """What the database is known to have, by the resource's uid: the fingerprint of the password, the number of
        pods, and the series of keys."""
        self._lost: set[str] = set()
        """The uids of resources whose database password another party has changed."""
        self._settled: dict[str, str] = {}
        """The roles that all pods of a resource use, by its uid; empty with shared credentials."""
        self._rotated: set[str] = set()
        """The uids of resources with a new role since `settle`."""

    @property
    def settled_roles(self) -> Mapping[str, str]:
        """The roles that all pods of a resource use, by the resource's uid."""
        return self._settled

    def forget(self, uid: str) -> None:
        """Forget the cached state of a resource's roles in the database."""
        self._ensured.pop(uid, None)
        self._settled.pop(uid, None)
        self._lost.discard(uid)
        self._rotated.discard(uid)

    async def keep(
        self,
        resource: UserRealtime,
        live: Mapping[str, Live],
        build: Callable[[Secrets], Iterable[Object]],
        *,
        database_available: bool,
        rolling_out: bool,
    ) -> Kept:
        """Decide the contents of a user's Secrets, create those that are missing, and create the role in the database.

        An existing Secret is not written here, but with the other objects.

        Args:
            live: the objects in the cache, by part.
            build: returns the manifests of the Secrets, in the order of `PARTS`.
            rolling_out: pods are being replaced. A password stays valid until that has ended, so none is rotated now.

        Raises:
            ApiError, Conflict: and whatever `build` raises.
        """
        replaces = database_available and resource.uid in self._lost
        may_rotate = database_available and not rolling_out
        live = {part: live[part] for part in PARTS}
        contents = await self._contents(resource, live, may_rotate, replaces)
        manifests = dict(zip(PARTS, build(contents.secrets), strict=True))
        current = set()
        for number, part in enumerate(PARTS, 1):
            created = await self._writer.create(manifests[part]) if live[part] is None else None
            if created is not None:
                live[part] = created
                current.add(part)
            elif not is_up_to_date(live[part], manifests[part]):
                # The contents of the second Secret depend on the first one, so both are read.
                for each in PARTS[:number]:
                    if each not in current:
                        live[each] = await self._read(resource, each)
                        current.add(each)
                contents = await self._contents(resource, live, may_rotate, replaces)
                manifests = dict(zip(PARTS, build(contents.secrets), strict=True))
        problem: ConditionResult | None = None
        if database_available:
            problem = await self._ensure_role(resource, contents.access, contents.secrets.token_keys.series)
        if problem and contents.access and (contents.access.rotated or replaces):
            # No pod may get a password that the database does not have.
            contents = await self._contents(resource, live, may_rotate=False, replaces=False)
        if contents.access is not None and contents.access.rotated:
            self._rotated.add(resource.uid)
        return Kept(live, contents, problem, replaces)

    async def _read(self, resource: UserRealtime, part: str) -> Live:
        """Return a Secret as the API server has it."""
        name = object_name(part, resource.child_name)
        live = await self._api.get(SECRET, resource.namespace, name)
        check_owner(resource, SECRET, live)
        if live is not None and own_secret(resource, part, live) is None:
            logger.warning("the Secret %s/%s has another creator: replacing its contents", resource.namespace, name)
        return live

    def written(self, resource: UserRealtime) -> None:
        """The Secret has been written, and the database has its role."""
        self._lost.discard(resource.uid)

    async def settle(self, resource: UserRealtime, access: Access | None) -> None:
        """Record that all pods of a user have this role, and retire the previous role."""
        role = access.credentials.role if access else ""
        self._settled[resource.uid] = role
        if self._roles is not None and resource.uid in self._rotated:
            self._rotated.discard(resource.uid)
            try:
                await self._roles.retire(resource.uid, role)
            except DatabaseError as error:
                logger.warning("could not retire the role that %s replaces; the next sweep retries: %s", role, error)

    async def is_locked_out(self, resource: UserRealtime, access: Access) -> bool:
        """Return whether the database rejects the password. The next reconciliation then replaces it."""
        if self._roles is None or self._ensured.get(resource.uid) is None:
            return False
        if not await self._roles.rejects_password(access.credentials):
            return False
        logger.warning("the database rejects the password of role %s; replacing the password", access.credentials.role)
        self._lost.add(resource.uid)
        self._ensured.pop(resource.uid, None)
        return True

    async def _contents(
        self, resource: UserRealtime, live: Mapping[str, Live], may_rotate: bool, replaces: bool
    ) -> Contents:
        key_secret, credential_secret = (own_secret(resource, part, live[part]) for part in PARTS)
        keys, keys_due_s = advance(key_secret, resource.key_rotation, self._now(), self._config.token_keys, random_text)
        url, policy = self._config.database_url, self._config.database
        if policy.credentials is CredentialsType.SHARED:
            return Contents(Secrets(keys, url), None, keys_due_s)
        names = role_names(urlsplit(url).path, self._api.scope(resource.namespace), resource.user_id)
        # A new series of keys means that the Secret with the keys was lost or disclosed.
        series = _series_digest(credential_secret)
        if credential_secret is None and read_credentials(key_secret, DATABASE_URL) is not None:
            # The only Secret of a user of an earlier version. A new role would end the sessions of all users' pods.
            credential_secret, series = key_secret, digest(series_of(key_secret))
        lost = replaces or series != digest(keys.series)
        access, access_due_s = choose_access(
            credential_secret,
            DATABASE_URL,
            names,
            resource.password_rotation,
            self._now(),
            policy.rotate_after_s,
            may_rotate,
            random_text,
            await self._last_role(names) if lost or read_credentials(credential_secret, DATABASE_URL) is None else None,
            lost,
        )
        due = [due_s for due_s in (keys_due_s, access_due_s) if due_s is not None]
        return Contents(
            Secrets(keys, access.credentials.url(url), access.annotations()), access, min(due, default=None)
        )

    async def _last_role(self, names: tuple[str, str]) -> str | None:
        """Return the latest role of a user. It is None also without a database: `Roles.ensure` then revokes it."""
        if self._roles is None:
            return None
        try:
            return await self._roles.newest(names)
        except DatabaseError as error:
            logger.info("could not find the previous role of a user: %s", error)
            return None

    async def _ensure_role(self, resource: UserRealtime, access: Access | None, series: str) -> ConditionResult | None:
        """Create or update the pods' role. Return why that failed, None if the database has the role."""
        if access is None or self._roles is None:
            return None
        credentials, uid = access.credentials, resource.uid
        try:
            wanted = credentials.fingerprint, resource.replicas, series
            if self._ensured.get(uid) != wanted:
                scope = self._api.scope(resource.namespace)
                await self._roles.ensure(
                    credentials,
                    uid,
                    scope,
                    resource.user_id,
                    resource.replicas,
                    series,
                    alone=uid in self._lost,
                    cause=RoleCause(
                        resource.name,
                        access.reason,
                        access.rotated,
                        resource.field_managers,
                        resource.requested_by if self._config.admission_policy.enabled else None,
                    ),
                )
                self._ensured[uid] = wanted
        except PasswordChanged as error:
            self._lost.add(uid)
            return ConditionResult(False, "RoleUnavailable", error.status)
        except DatabaseError as error:
            return ConditionResult(False, "RoleUnavailable", error.status)
        return None


def _series_digest(secret: Live) -> str | None:
    """Return the digest of the series of keys with which a Secret was written, None if it has none."""
    found: str | None = ((secret or {}).get("metadata") or {}).get("annotations", {}).get(SERIES_DIGEST)
    return found
