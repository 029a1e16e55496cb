"""Measurements. Each module prints a table, and names what it was measured on."""
