"""Errors that end a command."""


class CommandError(Exception):
    """The command failed. The message contains the cause and advice."""
