"""What the operator works on: resources, names, routes."""
