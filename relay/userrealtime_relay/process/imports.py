"""The imports of the relay, which a client waits for when it wakes a user."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

UNUSED: Final = (
    "http.server",  # of prometheus_client, as are the next three: its own server, and its client of the push gateway
    "urllib.error",
    "urllib.request",
    "wsgiref.simple_server",
    "importlib.metadata",  # of websockets, for the version of a development build
    "jwt.jwks_client",  # of PyJWT; userrealtime_core.auth.jwks reads key sets
    "uvicorn.main",  # the command line, with click and the supervisors
)
"""Modules that libraries import, and the relay never uses."""


@contextlib.contextmanager
def fast_imports() -> Iterator[None]:
    """Save about a third of the CPU of the imports in the block, and the memory of the modules in `UNUSED`.

    Modules are garbage only when the process ends, so the collector would traverse them several times for nothing.
    After the block, the modules in `UNUSED` can be imported as usual.
    """
    unused = {name: _Unused(name) for name in UNUSED if name not in sys.modules}
    sys.modules.update(unused)
    gc.disable()
    try:
        yield
    finally:
        for name in unused:
            del sys.modules[name]
        gc.freeze()
        gc.enable()


class _Unused(ModuleType):
    """A module in which every name is an empty class, for libraries to import and derive from."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
