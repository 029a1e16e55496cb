"""A string that does not appear in logs, error messages or `repr`."""

from __future__ import annotations


class Secret:
    """A string that is shown only by `reveal`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The string itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"
