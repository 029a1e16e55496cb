"""The bridge publishes signals from Postgres to a broker, for all users of a database.

    announcer (core)   polls the queue of signals, or listens on the doorbell
    poller             reads the heads of all users that have a running relay, every poll interval
    pending            merges both: of each user the newest signal
    server             publishes what is pending to the broker

The poll covers signals that were lost on the way. It also shows each relay that it is up to date, which saves the relay
a query. A bridge has no state: a second one publishes the same signals, which costs little, and either may fail.
"""
