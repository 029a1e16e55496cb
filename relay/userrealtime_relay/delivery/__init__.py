"""Delivery of the events of the log to clients: the newest events in memory, and the clients that read them."""
