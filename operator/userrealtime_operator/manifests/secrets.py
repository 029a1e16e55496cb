"""The Secrets of a user: one with the token keys, and one with the URLs of the database and of the broker."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from userrealtime_operator.config import Config
from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.naming import CREDENTIALS, object_name
from userrealtime_operator.model.resource import UserRealtime
from userrealtime_operator.secrets.token_keys import TokenKeys

from .metadata import digest, metadata_of

SERIES_DIGEST = "userrealtime.dev/token-key-series-digest"
"""An annotation of a Deployment and of a Secret with URLs: the digest of the key series with which it was written."""
DATABASE_URL = "DATABASE_URL"


@dataclass(frozen=True, slots=True)
class Secrets:
    """The contents of a user's two Secrets, hidden from `repr`."""

    token_keys: TokenKeys
    database_url: str
    database_annotations: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "Secrets(...)"


def broker_of(resource: UserRealtime, config: Config) -> dict[str, str]:
    """Return the variable with the URL of the user's broker, empty without a broker."""
    signal = config.signals.of(resource.signal)
    return {signal.variable: config.signals.url} if signal.broker else {}


def key_secret_of(resource: UserRealtime, secrets: Secrets) -> Object:
    """Return the Secret with the token keys. Applications and the activator read it."""
    return _secret(metadata_of(resource), secrets.token_keys.annotations(), secrets.token_keys.data())


def credential_values(resource: UserRealtime, config: Config, secrets: Secrets) -> dict[str, str]:
    return {DATABASE_URL: secrets.database_url, **broker_of(resource, config)}


def credential_secret_of(resource: UserRealtime, config: Config, secrets: Secrets) -> Object:
    """Return the Secret with the URLs of the database and of the broker. Only the user's pods need it."""
    metadata = metadata_of(resource)
    metadata["name"] = object_name(CREDENTIALS, resource.child_name)
    # If the keys are replaced because the Secret with the keys was lost, the password is replaced with them.
    annotations = {SERIES_DIGEST: digest(secrets.token_keys.series), **secrets.database_annotations}
    return _secret(metadata, annotations, credential_values(resource, config, secrets))


def _secret(metadata: Object, annotations: Mapping[str, str], values: Mapping[str, str]) -> Object:
    metadata["annotations"] |= annotations
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in values.items()},
    }
