"""Injected faults between the log and a client; docs/delivery.md describes what must hold, and why.

`proxy` is the network, `client` a client as in docs/relay.md, `history` the expected events and their check,
`world` all of it running, `steps` what may happen in it, `run` a plan of steps from its start to its judgement.
`python -m testing.faults` repeats a plan, shrinks a plan that failed, or runs new plans for a given time.
"""
