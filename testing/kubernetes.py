"""All objects of the chart and of a user, on the API server of another version of Kubernetes.

`python -m testing.kubernetes --kubernetes 1.31` builds kube-apiserver of this version from its Go modules, starts it
with etcd on loopback, and creates each object by a server-side dry run that rejects unknown fields. Without a version,
the API server of the local cluster is used. The first build of a version takes 5 to 15 minutes; the program stays in
the cache.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from userrealtime_operator.config import parse_config
from userrealtime_operator.manifests.children import desired_objects
from userrealtime_operator.sleep.state import Endpoints

from .cluster import ClusterError, binaries, tools
from .cluster.paths import REPOSITORY
from .cluster.process import run
from .cluster.progress import Step, heed_sigterm, note, step
from .local.apiserver import LocalApiServer
from .operator.samples import SECRETS, resource
from .patience import COMMAND_TIMEOUT_S

Json = dict[str, Any]

VERSIONS: Final = ("1.31.14", "1.32.13", "1.33.13", "1.34.4", "1.35.4")
"""The promised versions of Kubernetes, each with its newest patch release."""
CHART: Final = REPOSITORY / "charts" / "userrealtime"
CRD: Final = REPOSITORY / "crds" / "userrealtimes.yaml"
NAMESPACES: Final = ("userrealtime", "users")
DATABASE: Final = {"database": {"url": "postgresql://user:password@host/database"}}
# With other endpoints than the pod, a user has an EndpointSlice.
ACTIVATORS: Final = Endpoints("IPv4", ("10.0.0.1",), 8080)
# The kinds of the Prometheus Operator are not part of Kubernetes.
MONITORING: Final = {"dashboard": True}
INSTALLED: Final[Json] = {
    **DATABASE,
    "namespaces": ["users"],
    "monitoring": MONITORING,
    "broadcast": {"http": {"enabled": True, "existingSecret": {"name": "broadcast"}}},
    "admissionPolicy": {"enabled": True},
    "signals": {"type": "nats", "url": "nats://broker"},
}
ROUTES: Final[dict[str, Json]] = {
    "Ingress": {"url": "https://{name}.example.com", "tlsSecretName": "wildcard"},
    "HTTPRoute": {"type": "HTTPRoute", "url": "https://h/{name}", "gateway": {"name": "public", "namespace": "users"}},
    "Edge": {"type": "Edge", "url": "https://h/{name}"},
}
_STAGING: Final = re.compile(r"^\s*(?:replace )?(k8s\.io/[\w.-]+) => \./staging/", re.MULTILINE)
_MAIN: Final = """\
// Command kube-apiserver is the API server of Kubernetes.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(apiserver.NewAPIServerCommand())) }
"""


def patch_release(version: str) -> str:
    """Return the patch release of a version such as 1.31.

    Raises:
        ClusterError: the version is not promised.
    """
    for known in VERSIONS:
        if version in (known, known.rpartition(".")[0]):
            return known
    minors = ", ".join(known.rpartition(".")[0] for known in VERSIONS)
    raise ClusterError(f"there is no test for Kubernetes {version!r}: choose one of {minors}")


def module(version: str, kubernetes: str) -> str:
    """Return the go.mod of the API server.

    Kubernetes requires the modules of its own repository in version 0.0.0 and replaces them by folders. Here, each is
    replaced by its release of the same number.

    Args:
        kubernetes: the go.mod of the module `k8s.io/kubernetes`.
    """
    released = f"v0.{version.partition('.')[2]}"
    found = re.search(r"^go (\S+)$", kubernetes, re.MULTILINE)
    names = sorted(set(_STAGING.findall(kubernetes)))
    if found is None or not names:
        raise ClusterError(f"the go.mod of Kubernetes {version} has no version of Go, or no modules to replace")
    replaced = "".join(f"\t{name} => {name} {released}\n" for name in names)
    return (
        f"module userrealtime.dev/testing/kube-apiserver\n\ngo {found[1]}\n\n"
        f"require (\n\tk8s.io/component-base {released}\n\tk8s.io/kubernetes v{version}\n)\n\n"
        f"replace (\n{replaced})\n"
    )


def api_server(version: str) -> Path:
    """Return kube-apiserver of a version, built if it is not in the cache."""

    def build(current: Step, out: Path) -> None:
        folder = out.parent / "module"
        folder.mkdir()
        go = binaries.require_go()
        answer = subprocess.run(
            [go, "mod", "download", "-json", f"k8s.io/kubernetes@v{version}"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
        ).stdout
        found = json.loads(answer or "{}")
        if "GoMod" not in found:
            raise ClusterError(f"Kubernetes {version} cannot be downloaded: {found.get('Error', 'go reports nothing')}")
        (folder / "go.mod").write_text(module(version, Path(found["GoMod"]).read_text()))
        (folder / "main.go").write_text(_MAIN)
        # Adds the versions and checksums of all modules of the build; `go mod tidy` would add those of tests, too.
        current.run([go, "list", "-mod=mod", "-deps", "."], cwd=folder, timeout=900)
        binaries.go_build(current, folder, out, ldflags=binaries.kubernetes_ldflags(version))

    title = f"building kube-apiserver {version}"
    return binaries.cached("kube-apiserver", version, title, build, usual="5 to 15 min")


def render(values: Mapping[str, Any]) -> list[Json]:
    """Return the objects of the chart, hooks included."""
    command = ("template", "release", str(CHART), "--namespace", NAMESPACES[0], "--values", "-")
    return [
        item
        for item in yaml.safe_load_all(run(tools.helm(), *command, input=json.dumps(values), timeout=COMMAND_TIMEOUT_S))
        if item
    ]


def user_objects(chart: Sequence[Json]) -> list[Json]:
    """Return the objects of a user as an operator creates them that has this chart's configuration."""
    [text] = [item["data"]["config.yaml"] for item in chart if "config.yaml" in item.get("data", {})]
    config = parse_config(text, {"DATABASE_URL": DATABASE["database"]["url"], "BROKER_URL": "nats://broker"})
    replicas = {"replicas": 2}  # with a PodDisruptionBudget
    return list(desired_objects(resource(relay=replicas), config, SECRETS, activators=ACTIVATORS))


def cases() -> Iterator[tuple[str, list[Json]]]:
    """Yield the objects of the chart with different values, and those of a user, each with a name."""
    for name, route in ROUTES.items():
        chart = render({**INSTALLED, "route": route})
        yield f"chart, {name}", chart
        yield f"user, {name}", user_objects(chart)
    for path in sorted((REPOSITORY / "examples" / "values").iterdir()):
        values = {"namespaces": ["users"], "monitoring": MONITORING}
        yield f"chart, {path.name}", render({**yaml.safe_load(path.read_text()), **values})


def dual_stack(policy: str, family: int) -> list[Json]:
    """Return the objects of the chart with a shared edge for clients of both families."""
    edge = {"ipFamily": family, "service": {"ipFamilyPolicy": policy}}
    return render({**INSTALLED, "route": ROUTES["Edge"], "edge": edge})


def check(server: LocalApiServer, found: Sequence[tuple[str, list[Json]]]) -> list[str]:
    """Create objects by a dry run; return what the API server rejects."""
    server.kubectl("apply", "--server-side", "-f", str(CRD))
    server.kubectl("apply", "--server-side", "-f", "-", input=binaries.gateway_api())
    for namespace in NAMESPACES:
        server.kubectl("create", "namespace", namespace)
    problems = []
    for name, objects in found:
        # It exists already.
        created = [item for item in objects if item["kind"] != "CustomResourceDefinition"]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": created})
        try:
            server.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=text)
        except ClusterError as error:
            problems.append(f"{name}: {error}")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m testing.kubernetes", description=__doc__)
    parser.add_argument("--kubernetes", default=binaries.KUBERNETES, metavar="VERSION", help="such as 1.31")
    options = parser.parse_args(arguments)
    heed_sigterm()
    try:
        version = patch_release(options.kubernetes)
        program = None if version == binaries.KUBERNETES else api_server(version)
        found = list(cases())
        checking = step(f"checking the objects on Kubernetes {version}", usual="half a minute")
        with checking, LocalApiServer(program=program) as server:
            reported = json.loads(server.kubectl("get", "--raw", "/version"))["gitVersion"]
            if reported != f"v{version}":
                raise ClusterError(f"the API server reports {reported}, not v{version}")
            problems = check(server, found)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(f"rejected: {problem}", file=sys.stderr)
    if not problems:
        note(f"Kubernetes {version} accepts {sum(len(objects) for _, objects in found)} objects of {len(found)} cases")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
