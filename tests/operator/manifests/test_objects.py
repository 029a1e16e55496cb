"""From a resource to its objects."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testing.operator.samples import CONFIG, KEYS, SECRETS, by_part, resource
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_operator.config import Activator, Config, RouteType, Trust, parse_config
from userrealtime_operator.kube.types import Object
from userrealtime_operator.manifests import route, service
from userrealtime_operator.manifests.children import APPLIED_DIGEST, desired_objects
from userrealtime_operator.manifests.deployment import LAME_DUCK_S
from userrealtime_operator.manifests.secrets import Secrets
from userrealtime_operator.model.naming import CREDENTIALS, object_name
from userrealtime_operator.model.routes import RouteError
from userrealtime_operator.sleep.state import Asleep, Endpoints, asleep
from userrealtime_relay.config import Config as RelayConfig
from userrealtime_relay.delivery.clients import CLOSE_TIMEOUT


def parts(**spec: object) -> dict[str, Object]:
    return by_part(desired_objects(resource("alice", **spec), CONFIG, SECRETS))


def test_one_of_each_kind_all_owned_and_named_alike() -> None:
    objects = parts()
    assert list(objects) == ["Secret", CREDENTIALS, "Service", "Deployment", "Ingress"]
    for part, item in objects.items():
        metadata = item["metadata"]
        assert (metadata["namespace"], metadata["name"]) == ("users", object_name(part, resource().child_name))
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "userrealtime-operator"
        assert [(owner["uid"], owner["controller"]) for owner in metadata["ownerReferences"]] == [
            ("uid-of-alice", True)
        ]


def test_keys_and_urls_are_in_two_secrets_and_in_nothing_else() -> None:
    objects = parts()
    expected = {"Secret": {"TOKEN_KEY": KEYS.current}, CREDENTIALS: {"DATABASE_URL": CONFIG.database_url}}
    for part in expected:
        data = {key: base64.b64decode(value).decode() for key, value in objects[part]["data"].items()}
        assert data == expected[part]
    assert KEYS.series not in json.dumps(objects.pop(CREDENTIALS))
    del objects["Secret"]
    rest = json.dumps(objects)
    assert "hunter2" not in rest
    assert KEYS.current not in rest
    assert KEYS.series not in rest
    assert KEYS.current not in repr(SECRETS)
    assert "hunter2" not in repr(SECRETS)


def test_the_selectors_find_the_pod() -> None:
    objects = parts()
    deployment = objects["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"].items() <= labels.items()
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert objects["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"] == {
        "name": objects["Service"]["metadata"]["name"],
        "port": {"name": objects["Service"]["spec"]["ports"][0]["name"]},
    }


def test_the_health_port_is_not_in_the_service() -> None:
    assert [port["port"] for port in parts()["Service"]["spec"]["ports"]] == [8080]


def test_the_pod_meets_the_restricted_standard_and_has_no_token() -> None:
    pod = parts()["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_spec_overrides_the_defaults() -> None:
    container = parts(
        relay={"image": "mine:2", "resources": {"limits": {"memory": "1Gi"}}},
        limits={"connections": 7, "messageBytes": 2048},
    )["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "mine:2"
    assert container["resources"] == {"limits": {"memory": "1Gi"}}
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (environment["MAX_CONNECTIONS"], environment["MAX_MESSAGE_BYTES"]) == ("7", "2048")


def test_a_dollar_in_a_user_id_is_not_expanded_by_the_kubelet() -> None:
    container = parts(userId="$(TOKEN_KEY) $$")["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["env"][0] == {"name": "USER_ID", "value": "$$(TOKEN_KEY) $$$$"}


def test_the_ingress_follows_the_url() -> None:
    ingress = parts()["Ingress"]["spec"]
    assert ingress["ingressClassName"] == "traefik"
    assert ingress["rules"][0]["host"] == "realtime.example.com"
    assert ingress["rules"][0]["http"]["paths"][0]["path"] == f"/{resource().child_name}"
    assert ingress["tls"] == [{"hosts": ["realtime.example.com"]}]


def test_a_url_of_ones_own() -> None:
    ingress = parts(route={"enabled": True, "url": "http://alice.example.com"})["Ingress"]["spec"]
    assert ingress["rules"][0]["host"] == "alice.example.com"
    assert ingress["rules"][0]["http"]["paths"][0]["path"] == "/"
    assert "tls" not in ingress


@pytest.mark.parametrize("off", ["resource", "platform"])
def test_no_ingress_where_no_route_is_wanted(off: str) -> None:
    config = CONFIG if off == "resource" else replace(CONFIG, route=replace(CONFIG.route, enabled=False))
    objects = desired_objects(resource(route={"enabled": off != "resource"}), config, SECRETS)
    assert "Ingress" not in {item["kind"] for item in objects}


def routed(kind: RouteType, **route: Any) -> dict[str, Object]:
    config = replace(
        CONFIG, route=replace(CONFIG.route, type=kind, gateway={"name": "public", "namespace": "gateways"})
    )
    objects = desired_objects(resource(route={"enabled": True, **route}), config, SECRETS)
    return by_part(objects)


def test_an_http_route_instead_of_an_ingress() -> None:
    objects = routed(RouteType.HTTP_ROUTE)
    assert list(objects) == ["Secret", CREDENTIALS, "Service", "Deployment", "HTTPRoute"]
    spec = objects["HTTPRoute"]["spec"]
    assert spec["hostnames"] == ["realtime.example.com"]
    assert [(parent["kind"], parent["name"], parent["namespace"]) for parent in spec["parentRefs"]] == [
        ("Gateway", "public", "gateways")
    ]
    [rule] = spec["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": f"/{resource().child_name}"}}]
    assert [(ref["name"], ref["port"]) for ref in rule["backendRefs"]] == [(resource().child_name, 8080)]
    assert "timeouts" not in rule
    defaults = replace(CONFIG.route, type=RouteType.HTTP_ROUTE, gateway={"name": "public"}, request_timeout="0s")
    config = replace(CONFIG, route=defaults)
    [route] = [item for item in desired_objects(resource(), config, SECRETS) if item["kind"] == "HTTPRoute"]
    assert [rule["timeouts"] for rule in route["spec"]["rules"]] == [{"request": "0s"}]


def test_the_shared_edge_needs_no_object_a_user() -> None:
    objects = routed(RouteType.EDGE)
    assert list(objects) == ["Secret", CREDENTIALS, "Service", "Deployment"]
    environment = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "BASE_PATH", "value": f"/{resource().child_name}"} in environment


@pytest.mark.parametrize("route", [{"enabled": False}, {"url": "http://alice.example.com"}])
def test_the_shared_edge_knows_no_exceptions(route: dict[str, Any]) -> None:
    with pytest.raises(RouteError, match=r"spec\.route\.(enabled|url) .* shared edge"):
        routed(RouteType.EDGE, **route)


def test_a_bad_url_names_its_field() -> None:
    with pytest.raises(RouteError, match=r"spec\.route\.url"):
        parts(route={"enabled": True, "url": "nowhere"})


def template(config: Config = CONFIG, secrets: Secrets = SECRETS, **spec: Any) -> Object:
    """The pod's template."""
    objects = desired_objects(resource(**spec), config, secrets)
    found: Object = next(item for item in objects if item["kind"] == "Deployment")["spec"]["template"]
    return found


def test_a_new_url_rolls_out_the_pod_and_a_new_key_does_not() -> None:
    assert template() != template(secrets=replace(SECRETS, database_url="postgresql://elsewhere/app"))
    assert template() != template(secrets=replace(SECRETS, token_keys=replace(KEYS, series="series two")))
    rotated = replace(KEYS, current="other-key-" * 4, previous=KEYS.current, honoured="1")
    assert template() == template(secrets=replace(SECRETS, token_keys=rotated))


def test_the_keys_are_files_and_those_that_come_and_go_may_be_missing() -> None:
    pod = template()["spec"]
    [mount] = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "keys"]
    environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert mount == {"name": "keys", "mountPath": environment["TOKEN_KEY_DIR"], "readOnly": True}
    [volume] = [each for each in pod["volumes"] if each["name"] == "keys"]
    source = volume["secret"]
    assert (source["secretName"], source["optional"]) == (resource().child_name, True)
    assert {item["key"]: item["path"] for item in source["items"]} == {
        name: name for name in ("TOKEN_KEY", "TOKEN_KEY_NEXT", "TOKEN_KEY_PREVIOUS")
    }


def test_the_urls_are_files_of_the_other_secret() -> None:
    pod = template(FULL)["spec"]
    [mount] = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "credentials"]
    environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert (mount["mountPath"], mount["readOnly"]) == (environment["CREDENTIALS_DIR"], True)
    assert mount["mountPath"] != environment["TOKEN_KEY_DIR"]
    [volume] = [each for each in pod["volumes"] if each["name"] == "credentials"]
    source = volume["secret"]
    assert source["secretName"] == f"{resource().child_name}-credentials"
    assert "optional" not in source
    assert [(item["key"], item["path"]) for item in source["items"]] == [
        (name, name) for name in ("DATABASE_URL", "NATS_URL")
    ]


def test_trusted_certificates_are_a_file_for_openssl_and_libpq() -> None:
    pod = template(replace(CONFIG, trust=Trust("authorities", "bundle.pem")))["spec"]
    [volume] = [each for each in pod["volumes"] if "configMap" in each]
    assert (volume["configMap"]["name"], volume["configMap"]["items"][0]["key"]) == ("authorities", "bundle.pem")
    [container] = pod["containers"]
    [mount] = [each for each in container["volumeMounts"] if each["name"] == volume["name"]]
    file = f"{mount['mountPath']}/{volume['configMap']['items'][0]['path']}"
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["SSL_CERT_FILE"] == environment["PGSSLROOTCERT"] == file


def test_quantities_are_as_the_api_server_stores_them() -> None:
    for pod in (
        template(relay={"resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"}}}),
        template(replace(CONFIG, relay=replace(CONFIG.relay, resources={"limits": {"cpu": 0.5, "memory": "1.0Gi"}}))),
    ):
        assert pod["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "500m", "memory": "1Gi"}}


FULL = parse_config(
    """
    namespaces: [users]
    relay:
      image: relay:1
      podLabels: {team: a, app.kubernetes.io/name: other}
      podAnnotations: {scrape: "true"}
      logLevel: warning
      signal: poll
      pollInterval: 500ms
      authTimeout: 5s
      pingInterval: 1m
      allowedOrigins: ["https://app.example.com", "http://localhost:3000"]
      protocols: [actioncable]
      auth:
        jwksUrl: https://issuer.example.com/keys
        issuer: https://issuer.example.com
        audience: realtime
        userClaim: email
        leeway: 0s
        maxLifetime: 1h
        allowQueryToken: true
        allowUserKeys: false
      nodeSelector: {pool: realtime}
      tolerations: [{operator: Exists}]
      affinity: {podAntiAffinity: {}}
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]
      priorityClassName: high
      runtimeClassName: gvisor
    signals: {type: nats, idleAfter: 5s}
    activator: {enabled: true, namespace: system, service: waker, announceUrl: "http://waker.system.svc:8081"}
    """,
    {"DATABASE_URL": CONFIG.database_url, "BROKER_URL": "nats://relay:hunter3@nats:4222"},
)


def relay_environment(pod: Object) -> dict[str, str]:
    """Return the environment that the kubelet gives the container, without the address of the pod."""
    env = pod["spec"]["containers"][0]["env"]
    return {entry["name"]: entry["value"].replace("$$", "$") for entry in env if "value" in entry}


class Recorder(dict[str, str]):
    """An environment that records which variables were read."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.asked: set[str] = set()

    def get(self, key: str, default: str = "") -> str:  # type: ignore[override]
        self.asked.add(key)
        return super().get(key, default)


def test_every_relay_setting_is_offered_or_excluded_explicitly(tmp_path: Path) -> None:
    (tmp_path / "TOKEN_KEY").write_text(KEYS.current)
    (tmp_path / "DATABASE_URL").write_text(CONFIG.database_url)
    (tmp_path / "NATS_URL").write_text(FULL.signals.url)
    pod = template(
        FULL, replicas=2, relay={"logLevel": "debug"}, limits={"messagesPerSecond": 7, "broadcastsPerSecond": 3}
    )
    environment = Recorder(relay_environment(pod))
    environment |= {"CREDENTIALS_DIR": str(tmp_path), "TOKEN_KEY_DIR": str(tmp_path), "POD_IP": "10.0.0.1"}
    config = RelayConfig.from_environment(environment)
    assert (config.log_level, config.signal, config.poll_interval) == ("debug", "nats", 0.5)
    assert config.idle_after == 5
    assert config.database_url.reveal() == CONFIG.database_url
    assert config.broker_url is not None
    assert config.broker_url.reveal() == FULL.signals.url
    assert (config.auth_timeout, config.ping_interval, config.max_messages_per_second) == (5, 60, 7)
    assert config.max_broadcasts_per_second == 3
    assert config.broadcast_to_pods
    assert config.allowed_origins == ("https://app.example.com", "http://localhost:3000")
    assert config.protocols == ("actioncable",)
    assert (config.jwks_url, config.token_issuer) == ("https://issuer.example.com/keys", "https://issuer.example.com")
    assert (config.token_audience, config.token_user_claim, config.token_leeway) == ("realtime", "email", 0)
    assert config.token_max_lifetime == 3600
    assert config.allow_query_token is True
    assert config.allow_user_keys is False
    assert config.announce_url == f"http://waker.system.svc:8081/{resource().namespace}/{resource().child_name}"
    # These belong to the pod itself, or depend on its memory limit.
    kept = {
        "HOST",
        "TOKEN_KEY",
        "TOKEN_KEY_PREVIOUS",
        # Files in CREDENTIALS_DIR.
        "DATABASE_URL",
        "NATS_URL",
        "RING_EVENTS",
        "RING_BYTES",
        "SEND_TIMEOUT",
        "DRAIN_TIMEOUT",
        "INSTANCE",
    }
    assert environment.asked - kept == set(environment)


@pytest.mark.parametrize(("replicas", "rate", "to_pods"), [(1, 5, False), (2, 0, False), (2, 5, True)])
def test_broadcasts_of_clients_use_the_database_only_with_several_pods(replicas: int, rate: int, to_pods: bool) -> None:
    environment = relay_environment(template(FULL, replicas=replicas, limits={"broadcastsPerSecond": rate}))
    assert environment["MAX_BROADCASTS_PER_SECOND"] == str(rate)
    assert environment.get("BROADCAST_TO_PODS", "false") == ("true" if to_pods else "false")


def test_pods_are_scheduled_and_labelled_as_the_platform_wants() -> None:
    pod = template(FULL)
    assert pod["metadata"]["annotations"]["scrape"] == "true"
    labels = pod["metadata"]["labels"]
    assert labels["team"] == "a"
    assert labels["app.kubernetes.io/name"] == "userrealtime-relay"
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"pool": "realtime"}
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["affinity"] == {"podAntiAffinity": {}}
    assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("high", "gvisor")
    [spread] = spec["topologySpreadConstraints"]
    assert spread["labelSelector"] == {"matchLabels": {"app.kubernetes.io/name": "userrealtime-relay"}}


def test_the_digest_covers_the_whole_object() -> None:
    before, after = parts(), parts(limits={"connections": 7})
    changed = {
        kind
        for kind in before
        if before[kind]["metadata"]["annotations"][APPLIED_DIGEST]
        != after[kind]["metadata"]["annotations"][APPLIED_DIGEST]
    }
    assert changed == {"Deployment"}


def test_pods_are_spread_over_nodes_by_default() -> None:
    [spread] = template(replicas=3)["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert spread["labelSelector"]["matchLabels"]["app.kubernetes.io/instance"] == resource().child_name
    assert "topologySpreadConstraints" not in template()["spec"]
    assert [each["topologyKey"] for each in template(FULL, replicas=3)["spec"]["topologySpreadConstraints"]] == ["zone"]
    for replicas in (1, 3):
        [deployment] = [
            o for o in desired_objects(resource(replicas=replicas), CONFIG, SECRETS) if o["kind"] == "Deployment"
        ]
        assert deployment["spec"]["replicas"] == replicas


def test_the_platform_can_assign_the_user_id_of_the_pods() -> None:
    """The security context constraint restricted-v2 of OpenShift assigns it, and rejects any other."""
    assert template()["spec"]["securityContext"]["runAsUser"] == 65532
    for user, fields in ((0, set()), (1000670000, {"runAsUser", "runAsGroup"})):
        context = template(replace(CONFIG, relay=replace(CONFIG.relay, run_as_user=user)))["spec"]["securityContext"]
        assert context.keys() & {"runAsUser", "runAsGroup"} == fields
        assert all(context[field] == user for field in fields)
        assert context["runAsNonRoot"] is True


def test_only_several_pods_have_a_budget_of_evictions() -> None:
    def budgets(replicas: int) -> list[Object]:
        return [
            item
            for item in desired_objects(resource(replicas=replicas), CONFIG, SECRETS)
            if item["kind"] == "PodDisruptionBudget"
        ]

    assert budgets(1) == []
    [budget] = budgets(2)
    assert budget["spec"]["maxUnavailable"] == 1
    labels = template(replicas=2)["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    # Pods that are not ready can be evicted even if no pod is ready.
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_clients_that_poll_reach_the_same_of_several_pods() -> None:
    def affinity(config: Config = CONFIG, **spec: object) -> str | None:
        objects = by_part(desired_objects(resource("alice", **spec), config, SECRETS))
        service = objects["Service"]["spec"]
        # The API server rejects the second field without the first one.
        assert ("sessionAffinity" in service) == ("sessionAffinityConfig" in service)
        found: str | None = service.get("sessionAffinity")
        return found

    assert affinity(replicas=2) is None
    assert affinity(protocols=["socketio"]) is None
    assert affinity(protocols=["pusher"], replicas=2) is None
    assert affinity(protocols=["socketio", "pusher"], replicas=2) == "ClientIP"
    enabled = replace(CONFIG, relay=replace(CONFIG.relay, protocols=("socketio",)))
    assert affinity(enabled, replicas=2) == "ClientIP"
    assert affinity(enabled, replicas=2, protocols=[]) is None


def test_a_pod_knows_its_address_where_it_is_to_announce_it() -> None:
    def own_ip(config: Config) -> list[Object]:
        return [entry for entry in template(config)["spec"]["containers"][0]["env"] if entry["name"] == "POD_IP"]

    assert own_ip(CONFIG) == []
    assert own_ip(FULL) == [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}
    ]


ASLEEP = Asleep("2026-01-02T03:04:05.000006Z", "2026-01-01T00:00:00.000000Z")
ACTIVATORS = Endpoints("IPv4", ("10.0.0.1", "10.0.0.2"), 8080)


def test_sleep_changes_only_replicas_annotations_and_slice() -> None:
    awake = parts()
    sleeping = by_part(desired_objects(resource("alice"), CONFIG, SECRETS, ASLEEP, ACTIVATORS))
    assert list(sleeping) == ["Secret", CREDENTIALS, "Service", "EndpointSlice", "Deployment", "Ingress"]
    assert sleeping["Deployment"]["spec"] == {**awake["Deployment"]["spec"], "replicas": 0}
    assert asleep(sleeping["Deployment"]) == ASLEEP
    assert asleep(awake["Deployment"]) is None
    for kind in ("Secret", CREDENTIALS, "Service", "Ingress"):
        assert sleeping[kind] == awake[kind]


def test_a_wake_changes_only_the_replicas() -> None:
    """The Deployment controller would write a changed annotation to the ReplicaSet before it starts the pod."""
    sleeping = by_part(desired_objects(resource("alice"), CONFIG, SECRETS, ASLEEP, ACTIVATORS))
    woken = by_part(desired_objects(resource("alice"), CONFIG, SECRETS, None, ACTIVATORS, ASLEEP))
    spec = sleeping["Deployment"]["spec"]
    assert woken == {**sleeping, "Deployment": {**sleeping["Deployment"], "spec": {**spec, "replicas": 1}}}
    assert asleep(woken["Deployment"]) is None


def test_activators_on_standby_are_endpoints_that_terminate() -> None:
    """A Service uses these only if it has no ready endpoint."""

    def conditions(activators: Endpoints) -> list[Object]:
        objects = desired_objects(resource("alice"), CONFIG, SECRETS, activators=activators)
        [found] = [item for item in objects if item["kind"] == "EndpointSlice"]
        return [endpoint["conditions"] for endpoint in found["endpoints"]]

    standby = {"ready": False, "serving": True, "terminating": True}
    assert conditions(replace(ACTIVATORS, standby=True)) == [standby, standby]
    assert conditions(ACTIVATORS) == [{"ready": True}, {"ready": True}]


def test_proxies_connect_to_the_service_where_it_has_activators_on_standby() -> None:
    def annotations(kind: str, config: Config) -> dict[str, str]:
        [found] = [item for item in desired_objects(resource("alice"), config, SECRETS) if item["kind"] == kind]
        annotations: dict[str, str] = found["metadata"]["annotations"]
        return annotations

    installed = replace(CONFIG, activator=Activator("system", "waker", 8080))
    for kind, wanted in (("Service", service.CLUSTER_ADDRESS), ("Ingress", route.CLUSTER_ADDRESS)):
        assert wanted.items() <= annotations(kind, installed).items()
        assert not wanted.keys() & annotations(kind, CONFIG).keys()
    [name] = route.CLUSTER_ADDRESS
    own = replace(installed, route=replace(installed.route, annotations={name: "false"}))
    assert annotations("Ingress", own)[name] == "false"


def test_a_terminating_pod_accepts_connections_before_it_drains() -> None:
    spec = template()["spec"]
    [container] = spec["containers"]
    drain_timeout = RelaySettings.from_environment({}).drain_timeout
    assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": LAME_DUCK_S}}}
    assert spec["terminationGracePeriodSeconds"] >= LAME_DUCK_S + drain_timeout + CLOSE_TIMEOUT


def test_the_cluster_does_not_manage_the_activator_slice() -> None:
    objects = by_part(desired_objects(resource("alice"), CONFIG, SECRETS, ASLEEP, ACTIVATORS))
    service, found = objects["Service"], objects["EndpointSlice"]
    metadata = found["metadata"]
    assert metadata["name"] == f"{service['metadata']['name']}-activator"
    assert metadata["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]
    assert metadata["labels"]["endpointslice.kubernetes.io/managed-by"] == "userrealtime-operator"
    assert metadata["ownerReferences"] == service["metadata"]["ownerReferences"]
    assert [port["name"] for port in found["ports"]] == [port["name"] for port in service["spec"]["ports"]]
    assert [endpoint["addresses"] for endpoint in found["endpoints"]] == [["10.0.0.1"], ["10.0.0.2"]]
