"""`testing.local.postgres` under its former name, which measuring scripts outside of this repository import."""

from testing.local.postgres import LocalPostgres

__all__ = ["LocalPostgres"]
