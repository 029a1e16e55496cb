"""One user's realtime pod: tails that user's event log in Postgres and serves it to the user's sockets."""
