"""One user's log in Postgres."""
