"""The relay compared with other servers: `python -m bench.relay`."""
