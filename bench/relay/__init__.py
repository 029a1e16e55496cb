"""The relay beside its peers: `python -m bench.relay`."""
