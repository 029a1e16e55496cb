"""The errors of the cluster providers. Their texts are for a person."""


class ClusterError(Exception):
    """An error that the user can act on; its text has the cause and advice."""


class UnknownError(ClusterError):
    """It is unknown whether the cluster has a feature; the text names the feature."""
