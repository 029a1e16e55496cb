"""How far each signal carries: many relays of one user each, in every mode, on one machine in one run."""
