"""The errors of the cluster providers. Their texts are for humans."""


class ClusterError(Exception):
    """An error that the user can resolve. Its text has the cause and advice."""


class UnknownError(ClusterError):
    """It is unknown whether the cluster has a feature; the text names the feature."""
