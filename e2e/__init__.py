"""The end-to-end scenarios on a cluster, and the two commands of the README."""
