"""The broadcast API: accepts broadcasts over HTTP from applications, which need no connection to Postgres for it.

It checks each broadcast and calls `userrealtime.broadcast` in batches, each a transaction. An announcer sends them, as
it sends those of other callers.

    config   the settings, and the tokens of applications
    queue    the broadcasts that wait, and the loop that writes them
    metrics  the metrics
    server   `POST /broadcast`, and the process
"""
