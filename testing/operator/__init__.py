"""Fakes of the API server and the database of the operator."""
