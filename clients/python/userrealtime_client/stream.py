"""A parser of Server-Sent Events that returns the data of each message, in order."""

from __future__ import annotations

from typing import Final

LONGEST_MESSAGE: Final = 64 << 20
"""The largest size of a message in bytes."""


class EventStream:
    """Parses a stream from pieces of any size.

    The fields `id` and `retry` are ignored: the messages contain the ids, and the machine computes the delays.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[str]:
        """Return the data of the messages that this piece completes.

        Raises:
            ValueError: a message is longer than `LONGEST_MESSAGE` or is not UTF-8.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST_MESSAGE:
            raise ValueError("a message without an end")
        messages: list[str] = []
        for line in lines:
            text = line.removesuffix(b"\r").decode()
            name, _, value = text.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif not text and self._data:
                messages.append("\n".join(self._data))
                self._data = []
        return messages
