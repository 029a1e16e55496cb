"""The objects of a user."""
