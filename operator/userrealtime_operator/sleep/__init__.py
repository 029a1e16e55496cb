"""Sleep and wake of users."""
