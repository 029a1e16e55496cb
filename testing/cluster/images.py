"""Images from the Dockerfiles: built with Docker where an engine answers, else with buildah.

An image is named by the hash of all it is made from: Dockerfile, base, locked requirements, sources. So an unchanged
image is neither built nor loaded again, and a changed one has a new reference, which rolls the pods that name it. Built
images are kept as archives in the cache.

The base image is `BASE_IMAGE` from the environment if set. Otherwise it is the Dockerfiles' own default under Docker,
and under buildah (chosen where no engine is, which as a rule means no registry either) a minimal Debian made with
debootstrap from the mirror of the machine's own apt. It is the Debian release that has the Python of that default,
whatever the machine's own release is: tests then run what users run.

The machine's pip configuration and the certificates it trusts reach the build as secrets, which no layer keeps.
"""

import ast
import configparser
import contextlib
import hashlib
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import docker, oci
from .binaries import source_hash
from .errors import ClusterError
from .paths import REPOSITORY, cache
from .process import run
from .progress import Step, exclusive, step
from .provider import Image, Provider

BUILD_LIMIT = 1800.0
NO_BUILDER = "no images can be built: start a Docker engine, or install buildah"
DEBIAN_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
DEBIAN_PACKAGES = ("python3-minimal", "python3-venv", "ca-certificates")
# The release of Debian whose Python is the one of `python:3.13-slim`, the default of the Dockerfiles.
DEBIAN_SUITE = "trixie"
DEBIAN_PYTHON = "3.13"
# Raise it to make a new base where nothing else of its recipe changes.
BASE_RECIPE = "1"
# Not needed to run anything, and most of what a base image would otherwise weigh.
BASE_WITHOUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists", "var/log")


@dataclass(frozen=True)
class Source:
    """What an image is made from, beside its base. Paths from `root`, by default this repository's."""

    name: str
    dockerfile: str
    inputs: Sequence[str]
    root: Path | None = None

    @property
    def directory(self) -> Path:
        return self.root or REPOSITORY


DEMO = Source("userrealtime-demo", "examples/demo/Dockerfile.demo", ("locks/demo.txt", "examples/demo"))
SOURCES = (
    Source(
        "userrealtime-operator",
        "Dockerfile.operator",
        ("locks/operator.txt", "core/userrealtime_core", "operator/userrealtime_operator"),
    ),
    Source(
        "userrealtime-relay",
        "Dockerfile.relay",
        ("locks/relay.txt", "core/userrealtime_core", "relay/userrealtime_relay"),
    ),
    Source(
        "userrealtime-postgres",
        "testing/images/Dockerfile.postgres",
        ("testing/images/postgres.txt", "testing/images/postgres-entrypoint.sh"),
    ),
    DEMO,
    Source("userrealtime-haproxy", "testing/images/Dockerfile.haproxy", ()),
    Source("userrealtime-nats", "testing/images/Dockerfile.nats", ("testing/images/nats.txt",)),
)
# Only for kind: pulled by the engine, with its logins and mirrors, and not by the node.
TRAEFIK = Source("userrealtime-traefik", "testing/images/Dockerfile.traefik", ())


def load(cluster: Provider, sources: Iterable[Source] = SOURCES) -> dict[str, str]:
    """Build what has changed and make all images available to the cluster's pods.

    Returns:
        Image name (`userrealtime-relay`) to the reference that pods name.

    Raises:
        ClusterError: a build failed, or neither Docker nor buildah is there.
    """
    return cluster.load_images(build(sources))


def build(sources: Iterable[Source] = SOURCES) -> list[Image]:
    """Build the images that are not in the cache. Errors as `load`."""
    with exclusive("images"):
        return _build(sources)


def _build(sources: Iterable[Source]) -> list[Image]:
    builder: Builder = Docker() if docker.answers() else Buildah()
    base, base_version = builder.base()
    images = []
    for source in sources:
        inputs = [source.directory / path for path in (source.dockerfile, *source.inputs)]
        digest = hashlib.sha256(f"{base_version}\0{source_hash(*inputs)}".encode()).hexdigest()[:12]
        # A tag that consists of digits only is a number for Helm's --set.
        tag = f"source-{digest}"
        image = Image(source.name, tag, cache("images", builder.name, f"{source.name}-{tag}.tar"))
        if not image.archive.exists():
            building = step(f"building {source.name}", usual="half a minute", hint=builder.hint)
            with building as current, pip_secrets() as secrets:
                partial = image.archive.with_suffix(".partial")
                partial.unlink(missing_ok=True)
                builder.build(current, source, image, base, secrets, partial)
                partial.replace(image.archive)
            _forget_older(image)
        images.append(image)
    return images


def require_builder() -> None:
    """Check that images can be built here.

    Raises:
        ClusterError: neither Docker with BuildKit nor buildah is there.
    """
    if docker.answers():
        if problem := docker.buildx_problem():
            raise ClusterError(problem)
    elif shutil.which("buildah") is None:
        raise ClusterError(NO_BUILDER)


def push(current: Step, image: Image, reference: str, *, tls: bool = True) -> None:
    """Push an image to a registry, as `reference`, with whichever builder is there.

    Without `tls`, the registry may use plain HTTP. Docker allows this only for addresses in its own configuration.
    """
    builder: Builder = Docker() if docker.answers() else Buildah()
    builder.push(current, image, reference, tls)


class Docker:
    """Builds with the Docker engine."""

    name = "docker"
    hint = "an image that cannot be pulled needs a `docker login`, a mirror, or another base named by BASE_IMAGE"

    def base(self) -> tuple[str, str]:
        """The base image (empty for the Dockerfile's default), and what it counts as in the hash."""
        chosen = os.environ.get("BASE_IMAGE", "")
        return chosen, chosen

    def build(
        self, current: Step, source: Source, image: Image, base: str, secrets: Sequence[str], archive: Path
    ) -> None:
        command = ["docker", "build", "--file", source.dockerfile, "--tag", image.local_reference]
        command += _build_arguments(base)
        command += [f"--secret={secret}" for secret in secrets]
        if problem := docker.buildx_problem():
            raise ClusterError(problem)
        environment = docker.environment()
        current.run([*command, "."], cwd=source.directory, env=environment, timeout=BUILD_LIMIT)
        current.run(["docker", "save", "--output", archive, image.local_reference], env=environment, timeout=600)
        older = [known for known in self.own_images(image.name) if known != image.local_reference]
        # An image that a container uses cannot be removed; the build has still succeeded.
        with contextlib.suppress(ClusterError):
            if older:
                current.run(["docker", "rmi", *older], env=environment, timeout=120)

    def push(self, current: Step, image: Image, reference: str, tls: bool) -> None:
        environment = docker.environment()
        current.run(["docker", "load", "--input", image.archive], env=environment, timeout=600)
        current.run(["docker", "tag", image.local_reference, reference], env=environment, timeout=60)
        current.run(["docker", "push", reference], env=environment, timeout=1800)

    def own_images(self, name: str = "") -> list[str]:
        """References of the images of this project that the engine has; with a `name`, of this one."""
        listing = run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}", timeout=60).split()
        prefix = f"localhost/{name}:" if name else "localhost/userrealtime-"
        return sorted({known for known in listing if known.startswith(prefix) and not known.endswith(":<none>")})


class Buildah:
    """Builds with buildah, in separate namespaces: even a killed build leaves no mount."""

    name = "buildah"
    hint = ""

    def base(self) -> tuple[str, str]:
        """The base image, made if need be, and what it counts as in the hash."""
        if chosen := os.environ.get("BASE_IMAGE"):
            return chosen, chosen
        reference, archive = debian_base()
        if not self._has(reference):
            with step("unpacking the base image") as current:
                current.run(self._command("pull", f"oci-archive:{archive}"), timeout=300)
        return reference, reference

    def build(
        self, current: Step, source: Source, image: Image, base: str, secrets: Sequence[str], archive: Path
    ) -> None:
        command = self._command("build", "--isolation=chroot", "--layers", "--pull=missing")
        command += ["--file", source.dockerfile, "--tag", image.local_reference, *_build_arguments(base)]
        command += [f"--secret={secret}" for secret in secrets]
        current.run([*command, "."], cwd=source.directory, timeout=BUILD_LIMIT)
        target = f"oci-archive:{archive}:{image.local_reference}"
        current.run(self._command("push", "--disable-compression", image.local_reference, target), timeout=600)
        # The storage is ours to tidy; what the layers of this image share with older ones stays.
        listing = self._command("images", "--format={{.Name}}:{{.Tag}}")
        known = run(listing[0], *listing[1:], timeout=60).split()
        ours = [reference for reference in known if reference.startswith(f"localhost/{image.name}:")]
        if older := [reference for reference in ours if reference != image.local_reference]:
            current.run(self._command("rmi", *older), timeout=120)

    def push(self, current: Step, image: Image, reference: str, tls: bool) -> None:
        current.run(self._command("pull", f"oci-archive:{image.archive}"), timeout=600)
        options = [] if tls else ["--tls-verify=false"]
        current.run(self._command("push", *options, image.local_reference, f"docker://{reference}"), timeout=1800)

    def _has(self, reference: str) -> bool:
        command = self._command("inspect", "--type=image", reference)
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0

    def _command(self, *args: str) -> list[str]:
        if shutil.which("buildah") is None:
            raise ClusterError(NO_BUILDER)
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        isolated = namespaces if os.geteuid() == 0 else []
        storage = cache("buildah", "storage")
        return [*isolated, "buildah", f"--root={storage}", f"--runroot={storage.with_name('run')}", *args]


Builder = Docker | Buildah


def debian_base() -> tuple[str, Path]:
    """Return the reference and the archive of a minimal Debian with Python `DEBIAN_PYTHON`, made if it is not there.

    Raises:
        ClusterError: it cannot be made; the text has an alternative.
    """
    mirror, own_suite = apt_source(apt_lines())
    suite = base_suite(_os_release(), own_suite)
    recipe = "\0".join((BASE_RECIPE, mirror, suite, *DEBIAN_PACKAGES))
    reference = f"localhost/userrealtime-base:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    archive = cache("images", reference.rpartition("/")[2].replace(":", "-") + ".tar")
    if archive.exists():
        return reference, archive
    if os.geteuid() != 0:
        raise ClusterError("set BASE_IMAGE to an image with Python: making one takes root")
    hint = (
        f"Debian {suite} is made from the mirror of this machine's apt, by its debootstrap and debian-archive-keyring, "
        f"which must know that release; or set BASE_IMAGE to an image with Python {DEBIAN_PYTHON} that can be pulled"
    )
    with (
        step("making a base image with debootstrap", usual="1 to 2 min", hint=hint) as current,
        tempfile.TemporaryDirectory(dir=archive.parent) as workspace,
    ):
        root, layer = Path(workspace, "root"), Path(workspace, "layer.tar")
        packages = f"--include={','.join(DEBIAN_PACKAGES)}"
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        debootstrap = ["debootstrap", "--variant=minbase", packages, suite, str(root), mirror]
        current.run([*namespaces, *debootstrap], timeout=900)
        excluded = [f"--exclude=./{path}/*" for path in (*BASE_WITHOUT, "dev", "proc", "sys", "run")]
        current.run(
            ["tar", "--create", "--numeric-owner", *excluded, f"--directory={root}", f"--file={layer}", "."],
            timeout=300,
        )
        oci.write(archive, reference, layer)
    return reference, archive


def base_suite(os_release: Mapping[str, str], own_suite: str) -> str:
    """Return the suite of the base image on a machine with this os-release file and this suite in its apt sources.

    The mirror of another distribution than Debian, such as Ubuntu, has no Debian: its own release serves there, and
    what it has for Python.
    """
    return DEBIAN_SUITE if os_release.get("ID") == "debian" else own_suite


def _os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def apt_source(lines: Iterable[str]) -> tuple[str, str]:
    """Mirror and suite of the first source in `apt-get indextargets` lines of `URI SUITE COMPONENT`.

    The release itself is meant, not its updates: suites with a dash or a slash are passed over.

    Raises:
        ClusterError: there is none.
    """
    for line in lines:
        uri, suite, component = line.split(" ")
        if component == "main" and not re.search(r"[-/]", suite):
            return uri, suite
    raise ClusterError("apt has no source to make a base image from: set BASE_IMAGE to an image with Python 3.13")


def apt_lines() -> list[str]:
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


def pip_options(listing: str) -> dict[str, str]:
    """What `pip install` would use of the options in the output of `pip config list`."""
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        name, separator, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if separator and section in found:
            found[section][option] = str(ast.literal_eval(value))
    return found["global"] | found["install"] | found[":env:"]


@contextmanager
def pip_secrets() -> Iterator[list[str]]:
    """The machine's pip configuration as build secrets (`id=...,src=...`), in files that go when the block ends."""
    listing = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(listing, capture_output=True, text=True, timeout=60)
    options = pip_options(done.stdout)
    with tempfile.TemporaryDirectory() as directory:
        secrets = []
        if bundle := _certificates(options):
            secrets.append(f"id=ca.crt,src={bundle}")
            options["cert"] = "/run/secrets/ca.crt"
        config = configparser.ConfigParser(interpolation=None)
        config["global"] = options
        path = Path(directory, "pip.conf")
        path.touch(mode=0o600)
        with path.open("w") as file:
            config.write(file)
        secrets.append(f"id=pip.conf,src={path}")
        yield secrets


def _certificates(options: Mapping[str, str]) -> str:
    """The certificate bundle that this machine trusts, as pip would find it; empty if none is there."""
    candidates = (
        options.get("cert"),
        os.environ.get("REQUESTS_CA_BUNDLE"),
        ssl.get_default_verify_paths().cafile,
        DEBIAN_CERTIFICATES,
    )
    return next((path for path in candidates if path and Path(path).is_file()), "")


def _build_arguments(base: str) -> list[str]:
    # A proxy is named without a value: it is taken from the environment and does not show in the process list.
    proxies = [name for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY") if name in os.environ]
    arguments = [f"--build-arg={name}" for name in proxies]
    return [f"--build-arg=BASE_IMAGE={base}", *arguments] if base else arguments


def _forget_older(image: Image) -> None:
    """Archives of the same image with another hash go, as do unfinished ones: they would pile up with every change."""
    for other in image.archive.parent.glob(f"{image.name}-*"):
        if other != image.archive:
            other.unlink()
