"""Where things live.

Two places, both outside the work tree, which a clean checkout shares with earlier ones:

- the cache (`$XDG_CACHE_HOME/userrealtime`): binaries, base images and image archives, each named by version or by
  the hash of what it was made from. It survives `down`; `python -m testing.cluster clean` removes it;
- the state (`/var/lib/userrealtime`): what a running local cluster needs. `down` removes all of it.
"""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
MANIFESTS = HERE / "manifests"

STATE = Path("/var/lib/userrealtime")


def cache(*parts: str) -> Path:
    """Return a path in the cache, and create its parent directories."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "userrealtime"
    path = root.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
