"""The operator's configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from userrealtime_operator.config import (
    Config,
    ConfigError,
    RelayDefaults,
    RouteDefaults,
    RouteType,
    load_config,
    parse_config,
)

ENVIRONMENT = {"DATABASE_URL": "postgresql://relay:hunter2@db/app"}
MINIMAL = "{namespaces: [users], relay: {image: 'relay:1'}}"


def test_the_least_that_is_needed() -> None:
    config = parse_config(MINIMAL, ENVIRONMENT)
    assert config == Config(("users",), RelayDefaults("relay:1"), RouteDefaults(), ENVIRONMENT["DATABASE_URL"])


def test_everything_given() -> None:
    config = parse_config(
        """
        namespaces: [a, b]
        relay:
          image: relay:2
          imagePullPolicy: Always
          imagePullSecrets: [registry]
          maxConcurrentRollouts: 5
          resources: {limits: {memory: 64Mi}}
        route:
          enabled: false
          type: HTTPRoute
          gateway: {name: public}
          url: https://{name}.example.com
          className: nginx
          annotations: {x: y}
          tlsSecretName: wildcard
        """,
        ENVIRONMENT,
    )
    assert config.namespaces == ("a", "b")
    assert config.relay == RelayDefaults("relay:2", "Always", ("registry",), 5, {"limits": {"memory": "64Mi"}})
    assert config.route == RouteDefaults(
        False, RouteType.HTTP_ROUTE, "https://{name}.example.com", {"name": "public"}, "nginx", {"x": "y"}, "wildcard"
    )


def test_empty_values_mean_the_default() -> None:
    config = parse_config(
        "{namespaces: [users], relay: {image: 'relay:1', resources: {}}, route: {className: '', annotations: {}}}",
        ENVIRONMENT,
    )
    assert config.relay == RelayDefaults("relay:1")
    assert config.route == RouteDefaults()


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as failure:
        parse_config(
            "{relay: {imagee: x, resources: 3}, route: {url: nowhere, type: Road, gateway: {nane: x}}, extra: 1}", {}
        )
    text = str(failure.value)
    for fault in (
        "extra: unknown",
        "namespaces: a list",
        "relay.imagee: unknown",
        "relay.resources: must be of type dict",
        "relay.image: required",
        "route.url: must be http",
        "route.type: must be one of Ingress, HTTPRoute, Edge",
        "route.gateway.nane: must be one of name, namespace, sectionName",
        "DATABASE_URL: must be set",
    ):
        assert fault in text


def test_an_http_route_needs_a_gateway() -> None:
    with pytest.raises(ConfigError, match=r"route\.gateway\.name: required"):
        parse_config("{namespaces: [users], relay: {image: 'relay:1'}, route: {type: HTTPRoute}}", ENVIRONMENT)


@pytest.mark.parametrize("text", ["[1]", "a: [", "text"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(text, ENVIRONMENT)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml", ENVIRONMENT)


def test_the_password_shows_in_no_text() -> None:
    assert "hunter2" not in repr(parse_config(MINIMAL, ENVIRONMENT))
