"""The clients under test, and a network between them and their relay."""
