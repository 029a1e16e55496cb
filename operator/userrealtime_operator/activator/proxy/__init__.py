"""The activator's public port: reads one request per connection, admits it, wakes the user, and forwards the bytes."""
