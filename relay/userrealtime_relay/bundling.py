"""Imports the relay, and writes a bundle of its modules: `python -m userrealtime_relay.bundling`, for an image."""

from __future__ import annotations

from importlib import import_module

from .process import bundle
from .process.imports import fast_imports


def main() -> None:
    """Write the bundle."""
    with fast_imports():
        from . import server  # noqa: F401
        from .protocols import MODULES
        from .transports import application  # noqa: F401  (imported with the first HTTP request)

        for name in MODULES.values():
            import_module(f"{__package__}.protocols.{name}")
    print(f"{bundle.write()} modules in {bundle.PATH}")


if __name__ == "__main__":
    main()
