"""Relays, clients, brokers and poolers for tests."""
