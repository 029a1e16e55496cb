"""The activator: accepts the connections of sleeping users, wakes them, and forwards each connection to the pod.

`routes`, `wakes` and most of `proxy` hold no socket; `proxy.proxy` is the shell around them.
"""
