"""The parts of the protocol with clients that relays and activators share. No I/O."""
