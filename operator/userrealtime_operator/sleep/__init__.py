"""When users sleep, and who wakes them."""
