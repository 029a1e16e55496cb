"""The process of a relay or bridge: its command line, probes, and age."""
