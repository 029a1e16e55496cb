"""What thousands of users cost the operator: `python -m bench.operator`."""
