"""The activator: takes the connections of users who sleep, wakes them, and carries each connection through to the pod.

`request`, `directory` and `wakes` decide and hold no socket; `gate` is the shell around them.
"""
