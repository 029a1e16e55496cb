"""The errors of the cluster providers that are meant to be read by a person."""


class ClusterError(Exception):
    """Something the user can act on; its text says what failed and what to do next."""


class UnknownError(ClusterError):
    """Nobody can say whether the cluster does something; its text says what."""
