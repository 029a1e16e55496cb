"""From Postgres to a broker: one LISTEN for all users, in place of one in each relay.

Every commit wakes every listener of a database, so a thousand relays must not listen. The bridge does, on the one
channel that `userrealtime.announce` notifies, and tells the broker which user's log has moved, and to where. Beneath
that it reads, every poll interval, where the logs of all users with a relay stand, and tells that: what a notification
was lost for, and to each relay that there is nothing new, so that it need not ask Postgres itself.

It keeps nothing: two of them at once double the signals, which costs nothing, and either may fail.
"""
