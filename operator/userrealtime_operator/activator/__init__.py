"""The activator: takes the connections of users who sleep, wakes them, and carries each connection through to the pod.

`routes`, `wakes` and most of `proxy` hold no socket; `proxy.proxy` is the shell around them.
"""
