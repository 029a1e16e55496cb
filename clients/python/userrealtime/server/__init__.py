"""What an application's server does: sign tokens, publish events, read positions, and take messages from the inbox.

    with transaction.atomic():                                  # Django; the same with psycopg and SQLAlchemy
        order = Order.objects.create(customer="alice")
        publish(connection, "alice", "order.placed", {"id": order.id})

    async with pool.acquire() as connection, connection.transaction():      # asyncpg; psycopg and SQLAlchemy as well
        await apublish(connection, "alice", "order.placed", {"id": 41})

Each function runs one statement on the connection that it is given, in the transaction that is open there. The
documentation has an example for each framework (docs/guides.md).
"""

from .database import Message, aposition, apublish, atake, position, publish, take
from .tokens import InvalidToken, TokenKeys, sign, verify

__all__ = [
    "InvalidToken",
    "Message",
    "TokenKeys",
    "aposition",
    "apublish",
    "atake",
    "position",
    "publish",
    "sign",
    "take",
    "verify",
]
