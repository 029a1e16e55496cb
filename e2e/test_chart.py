"""The chart: well-formed, accepted by the real API server, and without unused permissions."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
import yaml

from testing import demo
from testing.cluster import ClusterError
from testing.operator.names import child_name
from testing.patience import PATIENCE_S
from testing.system import CHART, OPERATOR_NAMESPACE, RELEASE, USERS_NAMESPACE, System, install, uninstall
from userrealtime_operator.config import Activator, Trust, parse_config
from userrealtime_operator.model.labels import RELAY
from userrealtime_operator.model.notifiers import SignalDefaults, SignalType
from userrealtime_operator.model.policies import KeyPolicy
from userrealtime_relay.bridge.config import Config as Bridge
from userrealtime_relay.broadcast_api.config import Config as BroadcastApi

PODS = ("Deployment", "Job")
DATABASE: dict[str, Any] = {
    "database": {"url": "postgresql://user:password@host/database"},
    "namespaces": [USERS_NAMESPACE],
}
# Every value differs from its default: all branches of the templates are rendered.
EVERYTHING: dict[str, Any] = {
    "database": {"existingSecret": {"name": "other", "key": "URL"}, "sharedUsers": True},
    "namespaces": [USERS_NAMESPACE, OPERATOR_NAMESPACE],
    "operator": {
        "replicas": 3,
        "image": {"repository": "a/operator", "tag": "2", "pullPolicy": "Always"},
        "logLevel": "debug",
        "resources": {"limits": {"memory": "1Gi"}},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"a": "b"},
    },
    "relay": {
        "image": {"repository": "a/relay", "tag": "2"},
        "resources": {"limits": {"memory": "64Mi"}},
        "logLevel": "debug",
        "signal": "listen",
        "pollInterval": "500ms",
        "authTimeout": "5s",
        "pingInterval": "1m",
        "allowedOrigins": ["https://app.example.com", "*"],
        "allowedImages": ["registry.example.com/realtime/*", "a/relay:3"],
        "protocols": ["actioncable"],
        "auth": {
            "jwksUrl": "https://issuer.example.com:8443/keys?a=<b>",
            "issuer": "https://issuer.example.com",
            "audience": "realtime",
            "userClaim": "email",
            "leeway": "0s",
            "maxLifetime": "1h",
            "allowQueryToken": True,
        },
        "nodeSelector": {"a": "b"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
        "priorityClassName": "high",
        "runtimeClassName": "gvisor",
        "podLabels": {"a": "b"},
        "podAnnotations": {"a": "b"},
    },
    "signals": {
        "type": "kafka",
        "url": "kafka://user:password@a:9092,kafka://b:9092",
        "existingSecret": {"name": "broker", "key": "URL"},
        "idleAfter": "5s",
        "maxListeners": 7,
        "bridge": {
            "replicas": 3,
            "pollInterval": "2.5s",
            "logLevel": "debug",
            "broker": {"url": "kafka://bridge@c:9094", "existingSecret": {"name": "bridge-broker", "key": "BRIDGE"}},
            "database": {"existingSecret": {"name": "bridge", "key": "URL"}},
            "resources": {"limits": {"memory": "64Mi"}},
            "nodeSelector": {"a": "b"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "podAnnotations": {"a": "b"},
        },
    },
    "broadcast": {
        "http": {
            "enabled": True,
            "replicas": 3,
            "existingSecret": {"name": "broadcasting", "key": "TOKENS"},
            "logLevel": "debug",
            "database": {"existingSecret": {"name": "broadcaster", "key": "URL"}},
            "resources": {"limits": {"memory": "64Mi"}},
            "nodeSelector": {"a": "b"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "podAnnotations": {"a": "b"},
        }
    },
    "trust": {"existingConfigMap": {"name": "authorities", "key": "bundle.pem"}},
    "names": {"opaque": {"existingSecret": {"name": "names", "key": "HMAC"}}},
    "tokenKeys": {"rotateAfter": "720h", "overlap": "48h", "publishAhead": "3m"},
    "idle": {"after": "90s", "parkAfter": "20m"},
    "activator": {
        "enabled": True,
        "replicas": 3,
        "userKeys": False,
        "database": {"existingSecret": {"name": "parking", "key": "URL"}},
        "logLevel": "debug",
        "resources": {"limits": {"memory": "1Gi"}},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"a": "b"},
    },
    "networkPolicy": {
        "ingressFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
        "monitoringFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "broadcastFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}],
        "database": {"cidrs": ["10.1.2.3/32"], "port": 6432},
        "broker": {"cidrs": ["10.1.2.4/32"], "port": 9092},
        "apiServer": {"cidrs": ["10.0.0.1/32"], "port": 6443},
        "extraEgress": [{"ports": [{"port": 4222, "protocol": "TCP"}]}],
    },
    "route": {
        "url": "https://{name}.example.com",
        "allowedHosts": ["*.example.com", "realtime.example.org"],
        "className": "traefik",
        "annotations": {"a": "b"},
        "tlsSecretName": "wildcard",
    },
    "migration": {
        "waitSeconds": 5,
        "resources": {"limits": {"memory": "256Mi"}},
        "podLabels": {"sidecar.istio.io/inject": "false"},
        "podAnnotations": {"linkerd.io/inject": "disabled"},
    },
    "monitoring": {
        "dashboard": True,
        "podMonitor": True,
        "serviceMonitor": True,
        "prometheusRule": True,
        "runbookUrl": "https://example.com/runbooks",
    },
    "admissionPolicy": {"enabled": True},
    "crds": {"keep": True},
    "imagePullSecrets": ["registry"],
}


def render(system: System, values: dict[str, Any]) -> str:
    return system.cluster.helm(
        "template", "other", str(CHART), "--namespace", OPERATOR_NAMESPACE, "--values", "-", input=json.dumps(values)
    )


def test_lint(system: System) -> None:
    for values in (DATABASE, EVERYTHING):
        system.cluster.helm("lint", str(CHART), "--strict", "--values", "-", input=json.dumps(values))


@pytest.mark.parametrize("values", [DATABASE, EVERYTHING], ids=["defaults", "everything"])
def test_the_api_server_accepts_every_object(system: System, values: dict[str, Any]) -> None:
    """Run a server-side dry run that rejects unknown fields."""
    # The CRD belongs to the running release, and a dry run may not adopt it.
    # These kinds belong to the Prometheus Operator, which is not installed here.
    absent = {"podMonitor": False, "serviceMonitor": False, "prometheusRule": False}
    monitoring = {**values.get("monitoring", {}), **absent}
    text = render(system, {**values, "crds": {"enabled": False}, "monitoring": monitoring})
    objects = [item for item in yaml.safe_load_all(text) if item]
    kinds = {item["kind"] for item in objects}
    assert {"Deployment", "Role", "RoleBinding", "ServiceAccount", "ConfigMap", "Job", "Pod"} <= kinds
    for item in objects:
        if item["kind"] == "Pod":
            # A pod is admitted only if its account exists, and a dry run has created no account.
            assert item["spec"].pop("serviceAccountName")
    rendered = yaml.safe_dump_all(objects)
    system.cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=rendered)


def test_the_crd_is_the_projects_own(system: System) -> None:
    rendered = render(system, EVERYTHING)
    crd = next(item for item in yaml.safe_load_all(rendered) if item and item["kind"] == "CustomResourceDefinition")
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == yaml.safe_load((CHART.parents[1] / "crds" / "userrealtimes.yaml").read_text())


def test_the_pod_monitor_finds_the_relays_health_port(system: System, users: Callable[..., str]) -> None:
    rendered = yaml.safe_load_all(render(system, EVERYTHING))
    monitors = [item["spec"] for item in rendered if item and item["kind"] == "PodMonitor"]
    [monitor] = [each for each in monitors if each["selector"]["matchLabels"] == RELAY]
    endpoint = monitor["podMetricsEndpoints"][0]
    labels = {**monitor["selector"]["matchLabels"], "app.kubernetes.io/instance": child_name(users("monitored"))}
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    [pod] = json.loads(system.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    port = next(p for p in pod["spec"]["containers"][0]["ports"] if p["name"] == endpoint["port"])["containerPort"]
    with (
        system.cluster.forward(USERS_NAMESPACE, f"pod/{pod['metadata']['name']}", port) as (host, reached),
        urllib.request.urlopen(f"http://{host}:{reached}{endpoint['path']}", timeout=PATIENCE_S) as answer,
    ):
        assert b"userrealtime_relay_ready 1" in answer.read()
    assert USERS_NAMESPACE in monitor["namespaceSelector"]["matchNames"]


@pytest.mark.parametrize("values", [DATABASE, EVERYTHING], ids=["defaults", "everything"])
def test_the_operator_understands_the_configuration(system: System, values: dict[str, Any]) -> None:
    rendered = yaml.safe_load_all(render(system, values))
    text = next(item for item in rendered if item and item["kind"] == "ConfigMap" and "config.yaml" in item["data"])
    environment = {"DATABASE_URL": "postgresql://h/d", "BROKER_URL": "kafka://h", "NAMES_KEY": "k" * 32}
    config = parse_config(text["data"]["config.yaml"], environment)
    activator = Activator(OPERATOR_NAMESPACE, "other-userrealtime-activator", 8080, parking=values is EVERYTHING)
    if values is EVERYTHING:
        # Its activators do not have the users' keys, so users' pods cannot register.
        assert config.activator == activator
        assert config.signals == SignalDefaults(SignalType.KAFKA, "kafka://h", 7, idle_after_s=5)
        assert config.relay_settings["DATABASE_IDLE_AFTER"] == "5"
        assert config.relay_settings["JWKS_URL"] == values["relay"]["auth"]["jwksUrl"]
        assert config.relay_settings["ALLOWED_ORIGINS"] == "https://app.example.com,*"
        assert config.relay.pod_spec.keys() >= {"nodeSelector", "tolerations", "affinity", "runtimeClassName"}
        assert config.token_keys == KeyPolicy(720 * 3600, 48 * 3600, 180)
        assert (config.idle.after_s, config.idle.park_after_s) == (90, 1200)
        assert config.trust == Trust("authorities", "bundle.pem")
        assert config.database.shared_users
        assert config.names.opaque
        assert config.relay.allowed_images == ("registry.example.com/realtime/*", "a/relay:3")
        assert config.route.allowed_hosts == ("*.example.com", "realtime.example.org")
    else:
        announce_url = f"http://other-userrealtime-activator-announcements.{OPERATOR_NAMESPACE}.svc:8081"
        assert config.activator == replace(activator, announce_url=announce_url)
        assert config.token_keys == KeyPolicy()
        assert config.trust is None
        assert not config.names.opaque


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "given", [{"certificates": CERTIFICATE}, EVERYTHING["trust"]], ids=["certificates", "existing"]
)
def test_every_pod_has_the_certificates_that_are_to_be_trusted(system: System, given: dict[str, Any]) -> None:
    signals = {"type": "nats", "url": "tls://nats"}
    values = {**DATABASE, "namespaces": [USERS_NAMESPACE], "signals": signals, "trust": given}
    rendered = [item for item in yaml.safe_load_all(render(system, values)) if item]
    holding = {
        (item["metadata"]["namespace"], item["metadata"]["name"]): item["data"]
        for item in rendered
        if item["kind"] == "ConfigMap" and CERTIFICATE in item["data"].values()
    }
    places = [OPERATOR_NAMESPACE, USERS_NAMESPACE]
    pods = {item["metadata"]["name"]: item["spec"]["template"]["spec"] for item in rendered if item["kind"] in PODS}
    assert len(pods) == 4
    for name, pod in pods.items():
        [volume] = [each["configMap"] for each in pod["volumes"] if each["name"] == "trust"]
        [item] = volume["items"]
        if given is EVERYTHING["trust"]:
            assert (volume["name"], item["key"]) == ("authorities", "bundle.pem")
        else:
            assert holding[OPERATOR_NAMESPACE, volume["name"]][item["key"]] == CERTIFICATE
        [container] = pod["containers"]
        [mount] = [each for each in container["volumeMounts"] if each["name"] == "trust"]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert env["SSL_CERT_FILE"] == env["PGSSLROOTCERT"] == f"{mount['mountPath']}/{item['path']}", name
    text = next(item for item in rendered if item["kind"] == "ConfigMap" and "config.yaml" in item["data"])
    trust = parse_config(text["data"]["config.yaml"], None).trust
    assert trust is not None
    if given is EVERYTHING["trust"]:
        assert not holding
    else:
        assert all(holding[place, trust.config_map][trust.key] == CERTIFICATE for place in places)


ANYWHERE: list[dict[str, Any]] = [
    {"namespaceSelector": {}},
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
    {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10"]}},
]
"""The peers of a rule without addresses: all except link-local addresses."""


def of_kind(system: System, values: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [item for item in yaml.safe_load_all(render(system, values)) if item and item["kind"] == kind]


def policy(system: System, values: dict[str, Any], of: str = "relays") -> dict[str, Any]:
    """The spec of the NetworkPolicy of the relays, or of another component."""
    policies = of_kind(system, values, "NetworkPolicy")
    spec, *others = [item["spec"] for item in policies if item["metadata"]["name"].endswith(f"-{of}")]
    # That of the relays is in each namespace.
    assert all(each == spec for each in others)
    return dict(spec)


def egress(spec: dict[str, Any]) -> dict[int, Any]:
    """Return the peers of the rules of a policy, except DNS, by port; None for a rule without peers."""
    dns, *rules = spec["egress"]
    assert {port["port"] for port in dns["ports"]} == {53, 5353}
    return {port["port"]: rule.get("to") for rule in rules for port in rule["ports"]}


def test_a_relay_reaches_only_dns_database_broker_and_issuer(system: System) -> None:
    spec = policy(system, EVERYTHING)
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    activators = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": OPERATOR_NAMESPACE}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "userrealtime-activator"}},
    }
    clients = [*EVERYTHING["networkPolicy"]["ingressFrom"], activators]
    assert spec["ingress"] == [
        {"ports": [{"port": "ws", "protocol": "TCP"}], "from": clients},
        {"ports": [{"port": "health", "protocol": "TCP"}], "from": EVERYTHING["networkPolicy"]["monitoringFrom"]},
    ]
    assert spec["egress"] == [
        {"ports": [{"port": port, "protocol": protocol} for port in (53, 5353) for protocol in ("UDP", "TCP")]},
        {"ports": [{"port": 6432, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}]},
        {"ports": [{"port": 9092, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "10.1.2.4/32"}}]},
        {"ports": [{"port": 8443, "protocol": "TCP"}], "to": ANYWHERE},
        {"ports": [{"port": 4222, "protocol": "TCP"}]},
    ]


def test_the_brokers_url_is_in_secrets_alone(system: System) -> None:
    url = "nats://user:hunter2@nats:4333"
    rendered = list(yaml.safe_load_all(render(system, {**DATABASE, "signals": {"type": "nats", "url": url}})))
    holding = {(item["kind"], item["metadata"]["name"]) for item in rendered if item and "hunter2" in json.dumps(item)}
    assert holding == {("Secret", "other-userrealtime-broker")}
    [bridge] = [i for i in rendered if i and i["kind"] == "Deployment" and i["metadata"]["name"].endswith("-bridge")]
    [container] = bridge["spec"]["template"]["spec"]["containers"]
    env = {entry["name"]: entry.get("value", "") for entry in container["env"] if entry["name"] != "CREDENTIALS_DIR"}
    Bridge.from_environment({**env, "DATABASE_URL": "postgresql://h/d", "NATS_URL": url})
    assert not bridge["spec"]["template"]["spec"]["automountServiceAccountToken"]


def credential_files(pod: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the name and the key of the Secret of each file in CREDENTIALS_DIR."""
    [container] = pod["containers"]
    [directory] = [each["value"] for each in container["env"] if each["name"] == "CREDENTIALS_DIR"]
    [mount] = [each for each in container["volumeMounts"] if each["mountPath"] == directory]
    assert mount["readOnly"]
    [volume] = [each for each in pod["volumes"] if each["name"] == mount["name"]]
    return {
        item["path"]: {"name": source["secret"]["name"], "key": item["key"]}
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }


@pytest.mark.parametrize("existing", [True, False])
def test_secrets_are_files_in_every_pod_of_the_release(system: System, existing: bool) -> None:
    url = {"url": "nats://relay:hunter2@nats:4222"}
    values = {
        "database": {"existingSecret": {"name": "own", "key": "uri"}} if existing else {"url": "postgresql://h/d"},
        "signals": {"type": "nats", **({"existingSecret": {"name": "broker", "key": "b"}} if existing else url)},
        "activator": {"sealedKeys": {"existingSecret": {"name": "seal" if existing else ""}}},
        "names": {"opaque": {"existingSecret": {"name": "names"}}},
        "namespaces": [USERS_NAMESPACE],
    }
    rendered = [item for item in yaml.safe_load_all(render(system, values)) if item]
    pods = {i["metadata"]["name"]: i["spec"]["template"]["spec"] for i in rendered if "template" in i.get("spec", {})}
    name = "other-userrealtime"
    database = {"name": "own", "key": "uri"} if existing else {"name": f"{name}-database", "key": "DATABASE_URL"}
    at_migration = database if existing else {"name": f"{name}-migrate", "key": "DATABASE_URL"}
    broker = {"name": "broker", "key": "b"} if existing else {"name": f"{name}-broker", "key": "BROKER_URL"}
    names = {"name": "names", "key": "NAMES_KEY"}
    seal = {"SEAL_KEY": {"name": "seal", "key": "SEAL_KEY"}} if existing else {}
    assert credential_files(pods[name]) == {"DATABASE_URL": database, "BROKER_URL": broker, "NAMES_KEY": names, **seal}
    assert credential_files(pods[f"{name}-bridge"]) == {"DATABASE_URL": database, "NATS_URL": broker}
    assert credential_files(pods[f"{name}-migrate"]) == {"DATABASE_URL": at_migration}
    assert f"{name}-activator" in pods
    for pod in pods.values():
        assert "secretKeyRef" not in json.dumps(pod)
    # The activator has no other secret than the key with which the operator has encrypted token keys.
    if existing:
        assert credential_files(pods[f"{name}-activator"]) == seal
    assert json.dumps(pods[f"{name}-activator"]["volumes"]).count('"secret"') == len(seal)


NATS = {"type": "nats", "url": "nats://relay:hunter2@a:4333"}
OF_THE_BRIDGE = "nats://bridge:hunter3@b:4334"


@pytest.mark.parametrize(
    ("signals", "name", "key", "port"),
    [
        (NATS, "other-userrealtime-broker", "BROKER_URL", 4333),
        (
            {**NATS, "bridge": {"broker": {"url": OF_THE_BRIDGE}}},
            *("other-userrealtime-bridge-broker", "BROKER_URL", 4334),
        ),
        ({**NATS, "bridge": {"broker": {"existingSecret": {"name": "own"}}}}, "own", "BROKER_URL", 4222),
        (EVERYTHING["signals"], "bridge-broker", "BRIDGE", 9092),
    ],
    ids=["shared", "url", "existing", "everything"],
)
def test_the_bridge_can_publish_with_an_account_of_its_own(
    system: System, signals: dict[str, Any], name: str, key: str, port: int
) -> None:
    values = {**DATABASE, "signals": signals}
    rendered = [item for item in yaml.safe_load_all(render(system, values)) if item]
    deployments = {item["metadata"]["name"]: item for item in rendered if item["kind"] == "Deployment"}

    def source(of: str, variable: str) -> dict[str, str]:
        return credential_files(deployments[f"other-userrealtime{of}"]["spec"]["template"]["spec"])[variable]

    assert source("-bridge", f"{signals['type'].upper()}_URL") == {"name": name, "key": key}
    # The operator has the URL of users' pods alone.
    assert (source("", "BROKER_URL")["name"] == name) is ("bridge" not in signals)
    holding = {item["metadata"]["name"] for item in rendered if "hunter3" in json.dumps(item)}
    assert holding <= {"other-userrealtime-bridge-broker"}
    assert port in egress(policy(system, values, "bridge"))


def test_the_activator_may_talk_to_relays_and_the_api_server(system: System) -> None:
    spec = policy(system, EVERYTHING, "activator")
    assert spec["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "userrealtime-activator"
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    dns, relays, database, api_server, issuer = spec["egress"]
    assert database == {"ports": [{"port": 6432, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}]}
    assert {port["port"] for port in dns["ports"]} == {53, 5353}
    assert relays["ports"] == [{"port": 8080, "protocol": "TCP"}]
    assert relays["to"][0]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "userrealtime-relay"}}
    assert relays["to"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == EVERYTHING["namespaces"]
    assert api_server == {"ports": [{"port": 6443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}
    assert issuer == {"ports": [{"port": 8443, "protocol": "TCP"}], "to": ANYWHERE}


def test_relays_may_announce_themselves_to_activators(system: System) -> None:
    [announcing] = [rule for rule in policy(system, DATABASE)["egress"] if rule["ports"][0]["port"] == 8081]
    assert announcing["to"][0]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "userrealtime-activator"}}
    [heard] = [
        rule for rule in policy(system, DATABASE, "activator")["ingress"] if rule["ports"][0]["port"] == "announce"
    ]
    assert heard["from"][0]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "userrealtime-relay"}}
    rendered = [item for item in yaml.safe_load_all(render(system, DATABASE)) if item]
    [service] = [i for i in rendered if i["kind"] == "Service" and i["metadata"]["name"].endswith("-announcements")]
    assert (service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]) == ("None", 8081)


EDGE: dict[str, Any] = {"route": {"type": "Edge", "url": "https://realtime.example.com/{namespace}/{name}"}}


@pytest.mark.parametrize(
    ("edge", "policy", "address"),
    [
        ({}, None, ":8080"),
        ({"service": {"ipFamilyPolicy": "SingleStack"}}, "SingleStack", ":8080"),
        ({"service": {"ipFamilyPolicy": "PreferDualStack"}}, "PreferDualStack", ":::8080 v4v6"),
        ({"ipFamily": 6}, None, ":::8080 v4v6"),
    ],
)
def test_the_edge_binds_to_the_families_of_its_service(
    system: System, edge: dict[str, Any], policy: str | None, address: str
) -> None:
    items = [item for item in yaml.safe_load_all(render(system, {**DATABASE, **EDGE, "edge": edge})) if item]
    [service] = [item for item in items if item["kind"] == "Service" and item["metadata"]["name"].endswith("-edge")]
    assert service["spec"].get("ipFamilyPolicy") == policy
    [text] = [item["data"]["haproxy.cfg"] for item in items if "haproxy.cfg" in item.get("data", {})]
    assert f"\n  bind {address}\n" in text


def with_resources(values: dict[str, Any], resources: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the chart's `resources`, wherever there are some, each replaced."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "resources":
            found[name] = resources
        elif isinstance(value, dict) and (inner := with_resources(value, resources)):
            found[name] = inner
    return found


def test_every_container_can_meet_a_quota(system: System) -> None:
    """A ResourceQuota can require limits of the CPU, which the chart does not set by itself."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    quota = {"requests": {"cpu": "11m", "memory": "65Mi"}, "limits": {"cpu": "1", "memory": "129Mi"}}
    values = merged(EVERYTHING, {**EDGE, **with_resources(defaults, quota)})
    items = [item for item in yaml.safe_load_all(render(system, values)) if item]
    pods = [item["spec"]["template"]["spec"] for item in items if item["kind"] in PODS]
    pods += [item["spec"] for item in items if item["kind"] == "Pod"]
    containers = [container for pod in pods for container in pod["containers"]]
    assert {"operator", "activator", "migrate", "check", "haproxy"} <= {container["name"] for container in containers}
    assert [container["name"] for container in containers if container["resources"] != quota] == []


def test_pods_that_end_can_reject_the_sidecars_of_a_mesh(system: System) -> None:
    """A sidecar that does not end keeps the Job running, and the installation waits for it in vain."""
    items = [item for item in yaml.safe_load_all(render(system, EVERYTHING)) if item]
    pods = [item["spec"]["template"]["metadata"] for item in items if item["kind"] == "Job"]
    pods += [item["metadata"] for item in items if item["kind"] == "Pod"]
    assert len(pods) == 2
    for metadata in pods:
        assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
        assert metadata["annotations"]["linkerd.io/inject"] == "disabled"
        assert metadata["labels"]["app.kubernetes.io/instance"] == "other"


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return values with changes, as Helm merges them."""
    both = {name: values[name] for name in values.keys() & changes.keys() if isinstance(values[name], dict)}
    return {**values, **changes, **{name: merged(value, changes[name]) for name, value in both.items()}}


BROKER: dict[str, Any] = {"signals": {"type": "nats", "existingSecret": {"name": "broker"}}}


@pytest.mark.parametrize("values", [DATABASE, {**DATABASE, **EDGE, **BROKER}, EVERYTHING, {**EVERYTHING, **EDGE}])
def test_every_pod_of_the_release_has_one_policy(system: System, values: dict[str, Any]) -> None:
    items = [item for item in yaml.safe_load_all(render(system, values)) if item]
    policies = [item for item in items if item["kind"] == "NetworkPolicy"]
    for pod in (item["spec"]["template"] for item in items if item["kind"] in PODS):
        [spec] = [
            each["spec"]
            for each in policies
            if each["metadata"]["namespace"] == OPERATOR_NAMESPACE
            and each["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        ]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        [container] = pod["spec"]["containers"]
        assert {rule["ports"][0]["port"] for rule in spec["ingress"]} == {
            port["name"]
            for port in container.get("ports", ())
            # Without the keys of users, nothing registers at the activator.
            if port["name"] != "announce" or values.get("activator", {}).get("userKeys", True)
        }


@pytest.mark.parametrize("values", [{**DATABASE, **EDGE, **BROKER}, EVERYTHING, {**EVERYTHING, **EDGE}])
def test_no_policy_allows_link_local_addresses(system: System, values: dict[str, Any]) -> None:
    for item in of_kind(system, values, "NetworkPolicy"):
        rules = item["spec"]["egress"]
        for rule in rules:
            for block in (peer["ipBlock"] for peer in rule.get("to", ()) if "ipBlock" in peer):
                assert block["cidr"] not in ("0.0.0.0/0", "::/0") or block in [peer.get("ipBlock") for peer in ANYWHERE]
        # DNS, which can have a link-local address, the API server, and a rule of the values.
        ports = [{port["port"] for port in rule["ports"]} for rule in rules if "to" not in rule]
        assert [each for each in ports if each not in ({53, 5353}, {443, 6443, 8443, 16443}, {4222})] == []


def test_the_operator_reaches_its_database_and_the_api_server(system: System) -> None:
    assert egress(policy(system, EVERYTHING, "operator")) == {
        6432: [{"ipBlock": {"cidr": "10.1.2.3/32"}}],
        6443: [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
    }
    assert egress(policy(system, DATABASE, "operator")) == {
        5432: ANYWHERE,
        **dict.fromkeys((443, 6443, 8443, 16443)),
    }


def test_the_bridge_reaches_its_database_and_the_broker(system: System) -> None:
    assert egress(policy(system, {**DATABASE, **BROKER}, "bridge")) == {5432: ANYWHERE, 4222: ANYWHERE}
    urls = {"signals": {"type": "kafka", "url": "kafka://u:p@a,kafka://b:9093,kafka://c:9093"}}
    assert egress(policy(system, {**DATABASE, **urls}, "bridge")) == {
        5432: ANYWHERE,
        9092: ANYWHERE,
        9093: ANYWHERE,
    }


BROADCAST_API = {"broadcast": {"http": {"enabled": True, "existingSecret": {"name": "broadcasting"}}}}


def test_the_broadcast_api_is_disabled_by_default_and_needs_a_token(system: System) -> None:
    assert "broadcast-api" not in render(system, DATABASE)
    with pytest.raises(ClusterError, match=r"broadcast\.http\.existingSecret\.name"):
        render(system, {**DATABASE, "broadcast": {"http": {"enabled": True}}})


def test_the_broadcast_api_has_its_token_and_the_database_and_no_more(system: System) -> None:
    rendered = [item for item in yaml.safe_load_all(render(system, {**DATABASE, **BROADCAST_API})) if item]
    objects = {item["kind"]: item for item in rendered if item["metadata"]["name"].endswith("-broadcast-api")}
    assert objects.keys() == {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    template = objects["Deployment"]["spec"]["template"]
    assert not template["spec"]["automountServiceAccountToken"]
    assert credential_files(template["spec"]) == {
        "BROADCAST_TOKEN": {"name": "broadcasting", "key": "BROADCAST_TOKEN"},
        "DATABASE_URL": {"name": "other-userrealtime-database", "key": "DATABASE_URL"},
    }
    [container] = template["spec"]["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"] if entry["name"] != "CREDENTIALS_DIR"}
    config = BroadcastApi.from_environment({**env, "DATABASE_URL": "postgresql://h/d", "BROADCAST_TOKEN": "x" * 32})
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": config.port, "health": config.health_port}
    service = objects["Service"]["spec"]
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    assert [(each["port"], each["targetPort"]) for each in service["ports"]] == [(80, "http")]


def test_the_broadcast_api_reaches_its_database_and_is_reached_by_applications(system: System) -> None:
    anyone: list[dict[str, Any]] = [{"namespaceSelector": {}}]
    spec = policy(system, {**DATABASE, **BROADCAST_API}, "broadcast-api")
    assert egress(spec) == {5432: ANYWHERE}
    assert [(rule["ports"][0]["port"], rule["from"]) for rule in spec["ingress"]] == [
        ("http", anyone),
        ("health", anyone),
    ]
    spec = policy(system, EVERYTHING, "broadcast-api")
    assert egress(spec) == {6432: [{"ipBlock": {"cidr": "10.1.2.3/32"}}]}
    peers = EVERYTHING["networkPolicy"]
    assert [rule["from"] for rule in spec["ingress"]] == [peers["broadcastFrom"], peers["monitoringFrom"]]


def test_the_migration_reaches_its_database_and_comes_after_its_policy(system: System) -> None:
    [item] = [
        each for each in of_kind(system, DATABASE, "NetworkPolicy") if each["metadata"]["name"].endswith("-migrate")
    ]
    assert egress(item["spec"]) == {5432: ANYWHERE}
    [job] = of_kind(system, DATABASE, "Job")
    hook, weight = (f"helm.sh/{name}" for name in ("hook", "hook-weight"))
    assert item["metadata"]["annotations"][hook] == job["metadata"]["annotations"][hook]
    assert int(item["metadata"]["annotations"][weight]) < int(job["metadata"]["annotations"].get(weight, "0"))


def test_with_the_edge_it_is_the_way_to_the_pods_of_users(system: System) -> None:
    """A Service that leads elsewhere does not lead the edge there."""

    def components(peers: list[dict[str, Any]]) -> list[str]:
        names = [peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in peers]
        return [name.removeprefix("userrealtime-") for name in names]

    both: list[dict[str, Any]] = [{**DATABASE, **EDGE}, {**EVERYTHING, **EDGE}]
    for values in both:
        edge = policy(system, values, "edge")
        assert {port: components(peers) for port, peers in egress(edge).items()} == {8080: ["relay", "activator"]}
        sources = values.get("networkPolicy", {}).get("ingressFrom")
        [public, private] = edge["ingress"]
        assert public.get("from") == sources
        assert private.get("from") == (sources and [*sources, *values["networkPolicy"]["monitoringFrom"]])
        for name, expected in {"relays": ["edge", "activator"], "activator": ["edge"]}.items():
            assert components(policy(system, values, name)["ingress"][0]["from"]) == expected


@pytest.mark.parametrize("seal", ["", "seal"])
@pytest.mark.parametrize("userKeys", [True, False])
def test_the_activator_reads_secrets_only_where_they_have_the_keys(system: System, userKeys: bool, seal: str) -> None:
    activator = {"enabled": True, "userKeys": userKeys, "sealedKeys": {"existingSecret": {"name": seal}}}
    values = {**EVERYTHING, "namespaces": [USERS_NAMESPACE], "activator": activator}
    rendered = [item for item in yaml.safe_load_all(render(system, values)) if item]
    roles = [item for item in rendered if item["kind"] == "Role" and item["metadata"]["name"].endswith("-activator")]
    assert [role["metadata"]["namespace"] for role in roles] == values["namespaces"]
    for role in roles:
        reads_secrets = "secrets" in {name for rule in role["rules"] for name in rule["resources"]}
        assert reads_secrets is (userKeys and not seal)


@pytest.mark.parametrize(
    ("database", "ports"),
    [
        ({"url": "postgresql://user:pass:word@host:6543/database?x=y:1"}, [{"port": 6543, "protocol": "TCP"}]),
        ({"url": "postgresql://user@[::1]/database"}, [{"port": 5432, "protocol": "TCP"}]),
        ({"existingSecret": {"name": "other"}}, [{"port": 5432, "protocol": "TCP"}]),
    ],
)
def test_the_policy_knows_the_port_of_the_database(system: System, database: dict[str, Any], ports: list[Any]) -> None:
    assert policy(system, {**DATABASE, "database": database})["egress"][1]["ports"] == ports


def test_the_policy_is_about_the_pods_of_users(system: System, users: Callable[..., str]) -> None:
    name = child_name(users("policed"))
    found = json.loads(system.kubectl("get", "networkpolicies", "-o", "json"))["items"]
    [spec] = [item["spec"] for item in found]
    [pod] = json.loads(system.kubectl("get", "pods", "-l", f"app.kubernetes.io/instance={name}", "-o", "json"))["items"]
    assert spec["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    named = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert {rule["ports"][0]["port"] for rule in spec["ingress"]} == named


@pytest.mark.parametrize("namespace", [USERS_NAMESPACE, OPERATOR_NAMESPACE])
def test_the_test_namespaces_enforce_the_restricted_standard(system: System, namespace: str) -> None:
    """So every pod that runs in these tests meets it."""
    spec = {"containers": [{"name": "c", "image": "i"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    arguments = ("-n", namespace, "create", "--dry-run=server", "-f", "-")
    with pytest.raises(ClusterError, match='violates PodSecurity "restricted'):
        system.cluster.kubectl(*arguments, input=json.dumps(pod))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "/database"),
        ({**DATABASE, "route": {"url": "http://localhost/"}}, "/route/url"),
        ({**DATABASE, "databse": {}}, "databse"),
        ({**DATABASE, "signals": {"type": "nats"}}, "/signals/url"),
        ({**DATABASE, "signals": {"type": "nats", "url": "http://nats"}}, "/signals/url"),
        ({**DATABASE, "signals": {"type": "pigeon"}}, "/signals/type"),
        ({"database": {"url": "mysql://x"}}, "/database/url"),
        ({**DATABASE, "relay": {"pingInterval": "20"}}, "/relay/pingInterval"),
        ({**DATABASE, "relay": {"allowedOrigins": ["app.example.com"]}}, "/relay/allowedOrigins/0"),
        ({**DATABASE, "relay": {"auth": {"jwksUrl": "issuer"}}}, "/relay/auth/jwksUrl"),
        ({**DATABASE, "relay": {"auth": {"jwksUrl": "https://a.example"}}}, "jwksUrl requires relay.auth.audience"),
        ({**DATABASE, "relay": {"auth": {"allowUserKeys": False}}}, "allowUserKeys: false requires relay.auth.jwksUrl"),
        ({**DATABASE, "tokenKeys": {"rotateAfter": "monthly"}}, "/tokenKeys/rotateAfter"),
        ({**DATABASE, "names": {"opaque": True}}, "/names/opaque"),
        ({**DATABASE, "idle": {"after": "soon"}}, "/idle/after"),
        ({**DATABASE, "idle": {"parkAfter": "soon"}}, "/idle/parkAfter"),
        ({**DATABASE, "trust": {"certificates": "/etc/ssl/ca.crt"}}, "/trust/certificates"),
        (
            {**DATABASE, "trust": {"certificates": "-----BEGIN PRIVATE KEY-----\n" + CERTIFICATE}},
            "trust.certificates contains a private key",
        ),
        ({**DATABASE, "activator": {"enabled": True, "userKeys": False}}, "activator.userKeys must be true"),
        ({**DATABASE, "namespaces": []}, "set namespaces to other namespaces"),
        ({**DATABASE, "namespaces": [USERS_NAMESPACE, OPERATOR_NAMESPACE]}, "set namespaces to other namespaces"),
        ({**DATABASE, "relay": {"allowedImages": ["a b"]}}, "/relay/allowedImages/0"),
        ({**DATABASE, "route": {"allowedHosts": ["https://example.com"]}}, "/route/allowedHosts/0"),
        ({**DATABASE, "networkPolicy": {"database": {"cidrs": ["db"]}}}, "/networkPolicy/database/cidrs/0"),
    ],
)
def test_bad_values_are_refused_by_name(system: System, values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ClusterError, match=complaint):
        render(system, values)


@pytest.mark.parametrize(
    ("verb", "resource", "namespace", "allowed"),
    [
        ("patch", "deployments.apps", USERS_NAMESPACE, True),
        ("update", "secrets", USERS_NAMESPACE, True),
        ("patch", "secrets", USERS_NAMESPACE, False),
        ("patch", "endpointslices.discovery.k8s.io", USERS_NAMESPACE, True),
        ("patch", "endpointslices.discovery.k8s.io", OPERATOR_NAMESPACE, False),
        ("patch", "userrealtimes.userrealtime.dev/status", USERS_NAMESPACE, True),
        ("patch", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, False),
        ("get", "pods", USERS_NAMESPACE, False),
        ("create", "pods/exec", USERS_NAMESPACE, False),
        ("get", "secrets", OPERATOR_NAMESPACE, False),
        ("get", "secrets", "kube-system", False),
        ("create", "rolebindings.rbac.authorization.k8s.io", USERS_NAMESPACE, False),
        ("list", "namespaces", "", False),
        ("create", "leases.coordination.k8s.io", OPERATOR_NAMESPACE, True),
        ("update", "leases.coordination.k8s.io", OPERATOR_NAMESPACE, False),
        ("create", "leases.coordination.k8s.io", USERS_NAMESPACE, False),
        ("list", "customresourcedefinitions.apiextensions.k8s.io", "", False),
    ],
)
def test_the_operators_rights(system: System, verb: str, resource: str, namespace: str, allowed: bool) -> None:
    assert system.may(f"system:serviceaccount:{OPERATOR_NAMESPACE}:{RELEASE}", verb, resource, namespace) is allowed


@pytest.mark.parametrize(
    ("verb", "resource", "namespace", "allowed"),
    [
        ("watch", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, True),
        ("patch", "userrealtimes.userrealtime.dev/status", USERS_NAMESPACE, True),
        ("patch", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, False),
        ("watch", "pods", USERS_NAMESPACE, True),
        ("delete", "pods", USERS_NAMESPACE, False),
        ("create", "pods/exec", USERS_NAMESPACE, False),
        ("get", "secrets", USERS_NAMESPACE, True),
        ("list", "secrets", USERS_NAMESPACE, False),
        ("get", "secrets", OPERATOR_NAMESPACE, False),
        ("patch", "deployments.apps", USERS_NAMESPACE, False),
        ("get", "configmaps", OPERATOR_NAMESPACE, False),
        ("list", "namespaces", "", False),
    ],
)
def test_the_activators_rights(system: System, verb: str, resource: str, namespace: str, allowed: bool) -> None:
    account = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{RELEASE}-activator"
    assert system.may(account, verb, resource, namespace) is allowed


async def test_uninstalling_leaves_nothing_and_installing_again_works(
    system: System, users: Callable[..., str], database: asyncpg.Connection
) -> None:
    leaving = users("leaving")
    try:
        await asyncio.to_thread(uninstall, system.cluster)
        left = await asyncio.to_thread(
            system.cluster.kubectl,
            *("get", "crds,namespaces,clusterroles,clusterrolebindings", "-o", "name"),
        )
        # `make up` installs the demo, which is not part of the chart and stays.
        assert [
            line
            for line in left.splitlines()
            if ("userrealtime" in line or line == f"namespace/{USERS_NAMESPACE}")
            and line != f"namespace/{demo.NAMESPACE}"
        ] == []
    finally:  # the following tests need it in any case
        await asyncio.to_thread(install, system.cluster)
    await asyncio.to_thread(users, "arriving")
    # The operator sweeps a log that it could not remove before it was uninstalled.
    async with asyncio.timeout(PATIENCE_S):
        while await database.fetchval("select count(*) from userrealtime.log where user_id = $1", leaving):
            await asyncio.sleep(0.2)
