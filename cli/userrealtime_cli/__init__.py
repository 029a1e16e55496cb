"""The command line for people: `userrealtime`, or `kubectl userrealtime`."""
