"""Code that the operator and the relay share. It depends on neither."""
