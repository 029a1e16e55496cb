"""The protocol with clients, without I/O: frames, messages, positions, and the session of one client."""
