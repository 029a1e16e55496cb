"""The operator: turns UserRealtime resources into one relay pod a user, and keeps the schema of the log."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("userrealtime")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0.0.0"
