"""The name under which scripts outside of this repository import the local PostgreSQL."""
