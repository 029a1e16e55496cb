"""Token keys and database passwords."""
