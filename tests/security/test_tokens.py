"""The holder of a stolen token key of a user, where an identity provider signs the tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from testing.database import Database
from testing.operator.activator import secret
from testing.operator.names import child_name
from testing.relay.harness import KEY, running, token
from testing.relay.http_client import request
from testing.relay.issuer import RSA, endpoint, jwk, sign
from userrealtime_core.auth.errors import Unauthorized
from userrealtime_core.environment import ConfigError
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_operator.activator.routes import Route
from userrealtime_operator.activator.tokens import Tokens
from userrealtime_operator.kube.types import NamespacedName

PROVIDER = {"TOKEN_AUDIENCE": "*", "ALLOW_USER_KEYS": "false"}


async def test_a_stolen_token_key_is_useless_without_user_keys(migrated: Database) -> None:
    async with (
        endpoint(jwk(RSA, "r")) as issuer,
        running(migrated.url, None, JWKS_URL=issuer.url, TOKEN_KEY=KEY, **PROVIDER) as relay,
    ):
        assert (await request(relay, "/poll", token())).status == 401
        assert (await request(relay, "/poll", sign(RSA, "r"))).status == 200


async def test_at_the_activator_a_stolen_token_key_wakes_nobody() -> None:
    async def read(_: Route) -> dict[str, Any]:
        await asyncio.sleep(0)
        return secret(KEY)

    alice = Route(NamespacedName("users", "alice"), "alice", "", child_name("alice"))
    async with endpoint(jwk(RSA, "r")) as issuer:
        tokens = Tokens(RelaySettings.from_environment({"JWKS_URL": issuer.url, **PROVIDER}), read)
        with pytest.raises(Unauthorized):
            await tokens.check(alice, token())
        await tokens.check(alice, sign(RSA, "r"))


def test_without_any_key_no_process_starts() -> None:
    with pytest.raises(ConfigError, match="JWKS_URL: required with ALLOW_USER_KEYS=false"):
        RelaySettings.from_environment({"ALLOW_USER_KEYS": "false"})
