"""Imports the relay, and writes a bundle of its modules: `python -m userrealtime_relay.bundling`, for an image.

It then imports the modules that only some relays need, which compiles what they use of the standard library.
"""

from __future__ import annotations

from importlib import import_module

from .process import bundle
from .process.imports import UNUSED, fast_imports


def main() -> None:
    """Write the bundle."""
    with fast_imports():
        from . import server  # noqa: F401
        from .protocols import MODULES
        from .transports import application  # noqa: F401  (imported with the first HTTP request)

        for name in MODULES.values():
            import_module(f"{__package__}.protocols.{name}")
    print(f"{bundle.write()} modules in {bundle.PATH}")

    from userrealtime_core.auth import jwks  # noqa: F401

    from .bridge import server as bridge  # noqa: F401
    from .broadcast_api import server as broadcast_api  # noqa: F401
    from .notify.broker import BROKERS, load

    for broker in BROKERS:
        load(broker)
    for name in UNUSED:  # libraries of brokers may use them
        import_module(name)


if __name__ == "__main__":
    main()
