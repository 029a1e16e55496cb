"""Where the engine's files are. All of them but the cache are removed when it ends."""

from pathlib import Path

STATE = Path("/var/lib/userrealtime-engine")
CGROUP = "userrealtime-engine"

# Inside the namespaces, where /run is empty at first.
SOCKET = "/run/docker.sock"
PRIVATE = Path("/run/engine")
BIN = PRIVATE / "bin"
# STATE by another name: /var/lib is not the machine's in there.
DATA = PRIVATE / "state"
