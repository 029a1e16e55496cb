"""The scalability of each signal: many relays of one user each, in every mode, on one machine in one run."""
