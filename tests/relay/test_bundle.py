"""The bundle of modules: each test runs new processes, in which a package is imported from a bundle or as usual."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testing.patience import PATIENCE_S

pytestmark = pytest.mark.unit

WRITE = "import fruit.apple; from userrealtime_relay.process import bundle; bundle.write('{bundle}')"
USE = """
from userrealtime_relay.process import bundle
used = bundle.install('{bundle}')
import fruit.apple, fruit.pear
print(used, type(fruit.apple.__loader__).__name__, type(fruit.pear.__loader__).__name__, fruit.apple.COLOR)
"""
BUNDLED = "True _Loader SourceFileLoader red"
"""`fruit.pear` was not imported when the bundle was written."""
AS_USUAL = "False SourceFileLoader SourceFileLoader red"


class Fruit:
    """A package, and a bundle with one of its modules."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bundle = root / "test.bundle"
        self.package = root / "fruit"
        self.package.mkdir()
        (self.package / "__init__.py").touch()
        (self.package / "apple.py").write_text("COLOR = 'red'\n\ndef fail():\n    raise ValueError(COLOR)\n")
        (self.package / "pear.py").touch()
        self.run("import fruit.apple, fruit.pear")  # creates __pycache__, which changes the directory
        self.run(WRITE)

    def run(self, code: str, *options: str) -> str:
        """Run code in a new process; return its output."""
        command = [sys.executable, *options, "-c", code.format(bundle=self.bundle)]
        path = os.pathsep.join([str(self.root), *filter(None, sys.path)])
        done = subprocess.run(
            command, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        return done.stdout.strip()


@pytest.fixture
def fruit(tmp_path: Path) -> Fruit:
    return Fruit(tmp_path)


def test_modules_of_a_bundle_are_as_usual_except_for_their_loader(fruit: Fruit) -> None:
    assert fruit.run(USE) == BUNDLED
    shown = """
import importlib.resources, sys, traceback
from userrealtime_relay.process import bundle
{install}
import fruit
import fruit.apple as apple
print(apple.__file__, apple.__cached__, apple.__package__, apple.__spec__.origin, fruit.__path__, apple.__doc__)
print(importlib.resources.files("fruit").joinpath("apple.py").read_text())
try:
    apple.fail()
except ValueError:
    traceback.print_exc(file=sys.stdout)
"""
    usual = fruit.run(shown.replace("{install}", "pass"))
    bundled = fruit.run(shown.replace("{install}", "bundle.install('{bundle}')"))
    assert "raise ValueError(COLOR)" in usual
    assert bundled == usual


def test_a_bundle_is_ignored_if_a_module_was_added_or_replaced(fruit: Fruit) -> None:
    os.utime(fruit.package, (0, 0))
    assert fruit.run(USE) == AS_USUAL


def test_a_bundle_is_ignored_if_a_directory_is_missing(fruit: Fruit) -> None:
    fruit.package.rename(fruit.root / "vegetable")
    assert fruit.run("from userrealtime_relay.process import bundle; print(bundle.install('{bundle}'))") == "False"


def test_a_bundle_is_ignored_by_a_process_with_another_optimization(fruit: Fruit) -> None:
    assert fruit.run(USE, "-O") == AS_USUAL


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff" * 8, b"\x04" + bytes(7) + b"ruin"])
def test_a_damaged_bundle_is_ignored(fruit: Fruit, content: bytes) -> None:
    fruit.bundle.write_bytes(content)
    assert fruit.run(USE) == AS_USUAL


def test_without_a_bundle_modules_are_imported_as_usual(fruit: Fruit) -> None:
    fruit.bundle.unlink()
    assert fruit.run(USE) == AS_USUAL
