"""The events and the broadcasts of a channel, cut out of the frames of the rings. No I/O, and no JSON is parsed.

A log has no channels, so their names follow one rule for all protocols: the channel `log` is the whole log, under the
events' own names, and a channel `C` has the events named `C#rest`, under the name `rest`. The same holds for the names
of broadcasts.

The order of the members in the text of an event is a contract with `wire.frames.encode_events`, and in the text of a
broadcast with the database and `wire.broadcast.Content`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

from userrealtime_core.wire.frames import payloads

WHOLE_LOG: Final = "log"
SEPARATOR: Final = "#"
LONGEST_CHANNEL: Final = 200
"""Characters of the name of a channel. The name of an event may have 253, with the separator and its own name."""

_ID: Final = b'{"type":"event","id":'
_EVENT: Final = b',"event":"'
_AT: Final = b'","at":"'
_DATA: Final = b'","data":'
_BROADCAST: Final = b'{"type":"broadcast","event":"'


class Event(NamedTuple):
    """An event of a channel, as parts of its text."""

    id: bytes
    """Its number, in digits."""
    name: bytes
    """Its name in the channel, as the content of a JSON string."""
    at: bytes
    """Its time, RFC 3339."""
    data: bytes
    """Its data, as JSON."""
    text: bytes
    """The whole event, as JSON with its name in the log."""


class CutBroadcast(NamedTuple):
    """A broadcast of a channel, as parts of its text."""

    name: bytes
    """Its name in the channel, as the content of a JSON string."""
    data: bytes
    """Its data, as JSON."""

    @property
    def text(self) -> bytes:
        """The broadcast as JSON, with its name in the channel."""
        return b"%b%b%b%b}" % (_BROADCAST, self.name, _DATA, self.data)


def name_in_log(channel: str, name: str) -> str:
    """Return the name outside of a channel of what has this name in the channel."""
    return name if channel == WHOLE_LOG else f"{channel}{SEPARATOR}{name}"


def is_channel(name: str) -> bool:
    """Whether a channel can have this name."""
    return 0 < len(name) <= LONGEST_CHANNEL and SEPARATOR not in name and name.isprintable()


def cut(text: bytes) -> Event:
    """Return the parts of an event of the whole log.

    Raises:
        ValueError: the text is not an event as `encode_events` writes it.
    """
    number = text.index(_EVENT)
    # A quote in a name is escaped, so the first unescaped one, with what follows it, ends the name.
    name = text.index(_AT, number + len(_EVENT))
    at = text.index(_DATA, name + len(_AT))
    if not text.startswith(_ID):
        raise ValueError("not an event")
    return Event(
        text[len(_ID) : number],
        text[number + len(_EVENT) : name],
        text[name + len(_AT) : at],
        text[at + len(_DATA) : -1],
        text,
    )


def cut_channel(frames: bytes, channel: str) -> Iterator[Event]:
    """Yield the events of a channel in joined frames, which are WebSocket frames of events."""
    if channel == WHOLE_LOG:
        yield from map(cut, map(bytes, payloads(frames)))
        return
    front = front_of(channel)
    marked = _EVENT + front
    for text in map(bytes, payloads(frames)):
        if marked not in text:
            continue
        event = cut(text)
        if event.name.startswith(front) and len(event.name) > len(front):
            yield event._replace(name=event.name[len(front) :])


def cut_broadcasts(frames: bytes, channel: str) -> Iterator[CutBroadcast]:
    """Yield the broadcasts of a channel in joined frames.

    Those with another text are left out: a broker accepts them from anyone who may publish there.
    """
    front = b"" if channel == WHOLE_LOG else front_of(channel)
    marked = _BROADCAST + front
    for text in map(bytes, payloads(frames)):
        end = text.find(_DATA, len(marked))
        if text.startswith(marked) and end > len(marked):
            yield CutBroadcast(text[len(marked) : end], text[end + len(_DATA) : -1])


def front_of(channel: str) -> bytes:
    """Return how the names of a channel's events begin, as a part of a JSON string."""
    return f"{json.dumps(channel, ensure_ascii=False)[1:-1]}{SEPARATOR}".encode()
