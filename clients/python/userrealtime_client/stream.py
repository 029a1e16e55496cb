"""Server-Sent Events as a client of a relay reads them: the data of each message, in order."""

from __future__ import annotations

from typing import Final

LONGEST_MESSAGE: Final = 64 << 20
"""Bytes that are kept of a message that does not end."""


class EventStream:
    """Takes pieces of a stream, cut wherever the network cut them.

    Ids and delays are passed over: a client knows both from the messages themselves.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[str]:
        """The data of the messages that this piece completes.

        Raises:
            ValueError: a message is longer than `LONGEST_MESSAGE`, or no UTF-8.
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
