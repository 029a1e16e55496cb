"""A client of userrealtime: one user's events, each once and in order, over WebSocket, SSE or long poll.

    async with Client("https://realtime.example.com/urt-alice", token=fetch_token) as client:
        async for message in client:
            match message:
                case Event():
                    print(message.id, message.event, message.data)
                case Reset():
                    ...  # load the state again

With `state=load`, a function that returns the application's state and the text of `userrealtime.position(user_id)`, the
client delivers `Loaded` instead of `Reset`, and as its first message.

docs/clients.md describes all options.
"""

from .client import Broadcast, BroadcastError, Client, ClientError, Event, Loaded, PublishError, Reset
from .machine import Options, Position, State

__all__ = [
    "Broadcast",
    "BroadcastError",
    "Client",
    "ClientError",
    "Event",
    "Loaded",
    "Options",
    "Position",
    "PublishError",
    "Reset",
    "State",
]
