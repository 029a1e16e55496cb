"""From a change to the objects of a user."""
