"""The announcer: it tells relays, after the commit, which user's log has grown, and sends broadcasts.

Publishers do not notify while events arrive, since NOTIFY makes the commits of a server wait for one another. They
insert into a queue instead, which the announcer polls (`schema/repeatable/signals.sql` has the other half and the
reasons). Broadcasts have a separate queue (`schema/repeatable/broadcast.sql`). It runs in the bridge where there is
a broker, and in the operator otherwise.

    traffic      when to poll, and how often; pure
    queue        the functions of the schema, as methods
    loop         the connection, which both loops share
    announcer    the loop for signals, as a state machine of four phases
    broadcaster  the loop for broadcasts
"""

from .announcer import Announcer
from .broadcaster import Broadcaster
from .metrics import BroadcastMetrics, Metrics

__all__ = ["Announcer", "BroadcastMetrics", "Broadcaster", "Metrics"]
