"""The process: metrics and probes."""
