"""How clients are carried. Each transport is a shell around a `Session` and a cursor into the ring."""
