"""The database: users, roles, retention and the schema of the log."""
