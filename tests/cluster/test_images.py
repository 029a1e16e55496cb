import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from testing.cluster import docker, images
from testing.cluster.errors import ClusterError
from testing.cluster.images import Buildah, Docker, Source, apt_source, base_suite, pip_options, pip_secrets
from testing.cluster.paths import REPOSITORY
from testing.cluster.progress import Step, step
from testing.cluster.provider import Image

SOURCE = Source("thing", "Dockerfile", ("package",))


class Builds(list[str]):
    """The requested builds, by reference."""


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    """A repository with one image, and a fake builder that records its calls."""
    built = Builds()

    def build(
        _: Buildah, step: Step, source: Source, image: Image, base: str, secrets: Sequence[str], archive: Path
    ) -> None:
        built.append(image.local_reference)
        archive.write_text(base)

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text("1")
    (tmp_path / "Dockerfile").write_text("FROM x")
    monkeypatch.setattr(images, "REPOSITORY", tmp_path)
    monkeypatch.setattr(docker, "answers", lambda: False)
    monkeypatch.setattr(Buildah, "build", build)
    monkeypatch.setenv("BASE_IMAGE", "base:1")
    return built


def test_unchanged_images_are_not_built_again(builds: Builds) -> None:
    assert images.build([SOURCE]) == images.build([SOURCE])
    assert len(builds) == 1


def test_a_change_is_a_new_reference_and_the_old_archive_goes(builds: Builds, tmp_path: Path) -> None:
    (old,) = images.build([SOURCE])
    (tmp_path / "package" / "module.py").write_text("2")
    (new,) = images.build([SOURCE])
    assert old.local_reference != new.local_reference
    assert new.archive.exists()
    assert not old.archive.exists()


def test_another_base_is_another_image(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    images.build([SOURCE])
    monkeypatch.setenv("BASE_IMAGE", "base:2")
    (image,) = images.build([SOURCE])
    assert image.archive.read_text() == "base:2"
    assert len(set(builds)) == 2


def test_the_first_release_of_apt_is_taken() -> None:
    lines = [
        "http://mirror/security/ bookworm-security main",
        "http://mirror/debian/ bookworm-updates main",
        "http://elsewhere/ stable contrib",
        "http://mirror/debian/ bookworm main",
        "http://other/ bookworm main",
    ]
    assert apt_source(lines) == ("http://mirror/debian/", "bookworm")


def test_the_base_has_the_python_of_the_dockerfiles_default() -> None:
    """The Python version of a Debian release never changes, so `DEBIAN_PYTHON` follows `DEBIAN_SUITE`."""
    for source in images.SOURCES:
        text = (source.directory / source.dockerfile).read_text()
        assert f"\nARG BASE_IMAGE=python:{images.DEBIAN_PYTHON}-slim\n" in text


def test_every_debian_makes_the_same_base_and_others_their_own() -> None:
    assert base_suite({"ID": "debian"}, "bookworm") == images.DEBIAN_SUITE
    assert base_suite({"ID": "debian"}, "sid") == images.DEBIAN_SUITE
    assert base_suite({"ID": "ubuntu", "ID_LIKE": "debian"}, "noble") == "noble"
    assert base_suite({}, "noble") == "noble"


def test_without_apt_a_base_image_is_asked_for() -> None:
    with pytest.raises(ClusterError, match="BASE_IMAGE"):
        apt_source([])


def test_pip_options_of_environment_command_and_file_in_this_order() -> None:
    listing = """\
:env:.timeout='60'
freeze.all='true'
global.index-url='https://user:p=w@index.test/simple'
global.no-binary=':all:'
global.timeout='10'
install.no-binary=':none:'
install.timeout='20'
"""
    assert pip_options(listing) == {
        "index-url": "https://user:p=w@index.test/simple",
        "timeout": "60",
        "no-binary": ":none:",
    }


def test_pip_secrets_are_for_us_alone_and_go_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TIMEOUT", "61")
    with pip_secrets() as secrets:
        (path,) = (Path(found[1]) for s in secrets if (found := re.fullmatch("id=pip.conf,src=(.*)", s)))
        assert "timeout = 61" in path.read_text()
        assert path.stat().st_mode & 0o077 == 0
    assert not path.exists()


def test_the_build_trusts_whom_the_machine_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle.crt"
    bundle.write_text("certificates")
    monkeypatch.setenv("PIP_CERT", str(bundle))
    with pip_secrets() as secrets:
        assert f"id=ca.crt,src={bundle}" in secrets
        (path,) = (Path(found[1]) for s in secrets if (found := re.fullmatch("id=pip.conf,src=(.*)", s)))
        assert "cert = /run/secrets/ca.crt" in path.read_text()
        assert str(bundle) not in path.read_text()
    monkeypatch.delenv("PIP_CERT")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    assert images._certificates({"cert": "/no/such/file"}) == str(bundle)


@pytest.mark.parametrize("source", images.SOURCES, ids=lambda source: source.name)
def test_dockerfiles_end_as_a_numbered_user_with_an_exec_entrypoint(source: Source) -> None:
    text = (REPOSITORY / source.dockerfile).read_text()
    final = text.rpartition("\nFROM ")[2]
    # Kubernetes can check `runAsNonRoot` only for a numeric user.
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["/', final, re.MULTILINE)
    assert "pip" not in final


@pytest.mark.parametrize("source", images.SOURCES, ids=lambda source: source.name)
def test_the_hash_covers_all_that_a_dockerfile_copies(source: Source) -> None:
    text = (REPOSITORY / source.dockerfile).read_text()
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(\S+) \S+$", text, re.MULTILINE)
    assert copied or not source.inputs
    for path in copied:
        assert any(Path(path).is_relative_to(known) for known in source.inputs), path
        assert [*REPOSITORY.glob(path)]


DOCKER = """
echo "$@" >> {home}/calls
case "$1" in
  --version) echo Docker version {version}, build 1;;
  buildx) exit 1;;
  images) printf 'localhost/thing:old\\nlocalhost/thing:new\\nlocalhost/thing:<none>\\nlocalhost/things:1\\n';;
  rmi) exit 1;;
esac
"""


def build_with_docker(home: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> list[str]:
    """Build an image with a fake program, and return its calls."""
    (home / "docker").write_text(f"#!/bin/sh\n{DOCKER.format(home=home, version=version)}")
    (home / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")
    source = Source("thing", "Dockerfile", (), home)
    with step("building") as current:
        Docker().build(current, source, Image("thing", "new", home / "new.tar"), "", [], home / "new.tar")
    return (home / "calls").read_text().splitlines()


def test_docker_forgets_the_older_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = build_with_docker(tmp_path, monkeypatch, "20.10.24")
    removed = [call for call in calls if call.startswith("rmi")]
    assert removed == ["rmi localhost/thing:old"], "and one that is in use is no failure"


def test_without_buildx_docker_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match="docker-buildx"):
        build_with_docker(tmp_path, monkeypatch, "28.2.2")
    assert not [call for call in (tmp_path / "calls").read_text().splitlines() if call.startswith("build ")]


def test_each_builder_keeps_the_archives_of_the_other(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(_: Docker, step: Step, source: Source, image: Image, *arguments: object) -> None:
        image.archive.with_suffix(".partial").write_text("docker")

    (by_buildah,) = images.build([SOURCE])
    monkeypatch.setattr(docker, "answers", lambda: True)
    monkeypatch.setattr(Docker, "build", build)
    (by_docker,) = images.build([SOURCE])
    assert by_docker.archive.exists()
    assert by_buildah.archive.exists()


@pytest.mark.parametrize(("script", "found"), [("exit 1", False), ("echo buildx", True)])
def test_a_builder_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: bool) -> None:
    (tmp_path / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(docker, "answers", lambda: True)
    if found:
        images.require_builder()
    else:
        with pytest.raises(ClusterError, match="docker-buildx"):
            images.require_builder()
    monkeypatch.setattr(docker, "answers", lambda: False)
    with pytest.raises(ClusterError, match="install buildah"):
        images.require_builder()
