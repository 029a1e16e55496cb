"""The JavaScript client as the demo's page has it: built, and kept with the page, so that no image needs node.

python -m tests.demo.built    # builds it anew, after a change of clients/js
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.clients.javascript import ROOT, install

KEPT = ROOT / "examples" / "demo" / "page" / "userrealtime"


def build(home: Path) -> dict[str, str]:
    """The client's modules by name, built in a new folder below `home`."""
    modules = install(home) / "node_modules" / "userrealtime" / "dist"
    return {path.name: path.read_text() for path in modules.glob("*.js")}


def kept() -> dict[str, str]:
    """The modules that the page has."""
    return {path.name: path.read_text() for path in KEPT.glob("*.js")}


def main() -> int:
    """Build the modules and keep them; the result is the exit status."""
    with tempfile.TemporaryDirectory() as home:
        modules = build(Path(home))
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir()
    for name, text in modules.items():
        (KEPT / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
