"""The version that the tests of upgrades start from, taken from the history of this repository."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .cluster.paths import REPOSITORY

# The first release and, until there is one, a commit in its place: it has version 8 of the schema, and accepts
# the authority of the local cluster on the Python of the images.
CANDIDATES = ("v0.1.0", "69777d0a8ba6ec895907cec93d30209cd625ab3d")


class NoHistory(Exception):
    """This checkout does not contain the earlier version. The message has the reason."""


def revision() -> str:
    """Return the commit of the earlier version.

    Raises:
        NoHistory: git or the history is missing.
        LookupError: the history does not contain the version.
    """
    for candidate in CANDIDATES:
        found = _git("rev-parse", "--quiet", "--verify", f"{candidate}^{{commit}}")
        if found.returncode == 0:
            return found.stdout.decode().strip()
    shallow = _git("rev-parse", "--is-shallow-repository")
    if shallow.returncode != 0:
        raise NoHistory(f"no history in this checkout: {shallow.stderr.decode().strip()}")
    if shallow.stdout.decode().strip() == "true":
        raise NoHistory("this checkout is shallow: fetch the whole history (git fetch --unshallow --tags)")
    raise LookupError(f"none of {', '.join(CANDIDATES)} is in the history: name another commit in {__name__}")


def revision_or_skip() -> str:
    """Return the same for a test, which is skipped with the reason if there is no history."""
    try:
        return revision()
    except NoHistory as reason:
        print(reason)
        pytest.skip(str(reason))


@contextmanager
def source(commit: str) -> Iterator[Path]:
    """Yield the files of a commit, in a folder that is removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix="userrealtime-previous-") as folder:
        archive = Path(folder, "archive.tar")
        done = _git("archive", f"--output={archive}", commit)
        if done.returncode != 0:
            raise LookupError(f"git archive {commit}: {done.stderr.decode().strip()}")
        target = Path(folder, "source")
        with tarfile.open(archive) as files:
            files.extractall(target, filter="data")
        archive.unlink()
        yield target


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    # not the repository in the variables of a hook or another tool
    named = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in named}
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    except FileNotFoundError:
        raise NoHistory("git is not installed") from None
