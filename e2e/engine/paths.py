"""Where the engine's files are. All of them but the cache are removed when it ends."""

from pathlib import Path

STATE = Path("/var/lib/userrealtime-engine")
CGROUP = "userrealtime-engine"

# Inside the namespaces, where /run is empty at first.
SOCKET = "/run/docker.sock"
BIN = Path("/run/engine/bin")
