"""What breaks between the log and a client, broken on purpose: docs/delivery.md says what must hold, and why.

`proxy` is the network, `client` a client that does what docs/relay.md tells it, `history` the truth and the judge,
`world` all of it running, `steps` what may happen in it, `run` a plan of steps from its start to its judgement.
`python -m testing.faults` repeats a plan, shrinks one that failed, or goes on with new ones for as long as is wanted.
"""
