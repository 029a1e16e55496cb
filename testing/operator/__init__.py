"""Stand-ins for the API server and the database of the operator."""
