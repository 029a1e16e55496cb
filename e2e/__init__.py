"""The system as a stranger runs it: clusters, the two commands of the README, and the end-to-end scenarios."""
