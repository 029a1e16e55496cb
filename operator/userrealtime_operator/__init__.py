"""The operator: turns UserRealtime resources into one relay pod a user, and keeps the schema of the log."""

__version__ = "0.1.0"
