"""The cost of thousands of users for the operator: `python -m bench.operator`."""
