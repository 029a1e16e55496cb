"""The JavaScript client of the demo's page: built, and stored with the page. The image needs no node.

python -m testing.demo_page    # builds it again, after a change of clients/js
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from testing.clients.javascript import SOURCE, install
from testing.system import ROOT

PAGE = ROOT / "examples" / "demo" / "page"
KEPT = PAGE / "userrealtime"
STAMP = KEPT / "sha256"
MODULES = ("client", "decode", "index", "machine", "stream", "transports")
"""The modules of the client itself. Others are for frameworks and servers."""


def digest() -> str:
    """SHA-256 of what the client is built from, and of what the page has of it."""
    sources = (SOURCE / "src" / f"{name}.ts" for name in MODULES)
    files = [SOURCE / "tsconfig.json", *sources, *sorted(KEPT.glob("*.js"))]
    parts = (f"{path.name}\0{path.read_text()}\0" for path in files)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def main() -> int:
    """Build the modules and keep them; the result is the exit status."""
    with tempfile.TemporaryDirectory() as home:
        modules = install(Path(home)) / "node_modules" / "userrealtime" / "dist"
        shutil.rmtree(KEPT, ignore_errors=True)
        KEPT.mkdir()
        for name in MODULES:
            shutil.copyfile(modules / f"{name}.js", KEPT / f"{name}.js")
    STAMP.write_text(f"{digest()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
