"""Finds the end of a pod's greeting in its response to a stream, of which the client has the beginning. No I/O."""

from __future__ import annotations

from typing import Final

_GREETING: Final = b'data: {"type":"connected"'


class StreamGreeting:
    """Reads a response of a relay up to the message `connected`."""

    def __init__(self) -> None:
        self._received = b""
        self._at: int | None = None
        self._body = b""

    @property
    def accepted(self) -> bool | None:
        """Whether the pod serves the stream; None if its response has not come yet."""
        if b"\r\n\r\n" not in self._received:
            return None
        return self._received.startswith(b"HTTP/1.1 200 ")

    def feed(self, data: bytes) -> bytes | None:
        """Parse received bytes. Return the chunks for the client after the greeting; None if it is not complete."""
        self._received += data
        if self._at is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._at = end + 4
        while True:
            line = self._received.find(b"\r\n", self._at)
            if line < 0:
                return None
            size = int(self._received[self._at : line], 16)
            end = line + 2 + size + 2
            if len(self._received) < end:
                return None
            self._body += self._received[line + 2 : end - 2]
            self._at = end
            begin = self._body.find(_GREETING)
            if begin >= 0 and (last := self._body.find(b"\n\n", begin)) >= 0:
                after = self._body[last + 2 :]
                return (b"%x\r\n%b\r\n" % (len(after), after) if after else b"") + self._received[end:]
