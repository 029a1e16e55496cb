"""The one error of the cluster providers that is meant to be read by a person."""


class ClusterError(Exception):
    """Something the user can act on; its text says what failed and what to do next."""
