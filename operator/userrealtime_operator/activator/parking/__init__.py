"""Parked connections: the activator keeps the connections of idle clients while their user has no pod.

session   the protocol with one parked WebSocket, without I/O
stream    the responses to parked streams and polls, without I/O
user      the parked clients of one user, and where the log of the user stands, without I/O
clients   the connections of parked clients
heads     one connection to Postgres for all users: reports them, and learns that their logs have moved
parking   which connections are parked, and for how long
"""
