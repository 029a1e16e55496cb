"""The imports of the relay, which a client waits for when it wakes a user."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Final

UVICORN_COMMAND: Final = "uvicorn.main"
"""The module of uvicorn's command line, which `import uvicorn` imports together with click and the supervisors."""


@contextlib.contextmanager
def fast_imports() -> Iterator[None]:
    """Save about a sixth of the CPU of the imports in the block, and the memory of uvicorn's command line.

    Modules are garbage only when the process ends, so the collector would traverse them several times for nothing.
    """
    if UVICORN_COMMAND not in sys.modules:
        sys.modules[UVICORN_COMMAND] = _without_command()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _without_command() -> ModuleType:
    """Return a module with the names that the package `uvicorn` imports from its command line."""
    module = ModuleType(UVICORN_COMMAND, "The relay does not use the command line of uvicorn.")
    for name in ("Server", "main", "run"):
        setattr(module, name, None)
    return module
