"""Parts of the system that run on this machine without a cluster."""
