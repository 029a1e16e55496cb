"""A client of userrealtime: one user's events, each once and in order, over WebSocket, SSE or long poll.

    async with Client("https://realtime.example.com/urt-alice", token=fetch_token) as client:
        async for message in client:
            match message:
                case Event():
                    print(message.id, message.event, message.data)
                case Reset():
                    ...  # fetch the state anew

docs/clients.md has the rest.
"""

from .client import Client, ClientError, Event, PublishError, Reset
from .machine import Options, Position, State

__all__ = ["Client", "ClientError", "Event", "Options", "Position", "PublishError", "Reset", "State"]
