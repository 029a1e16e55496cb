"""One user's realtime pod: tails that user's event log in Postgres and serves it to the user's sockets."""

__version__ = "0.1.0"
