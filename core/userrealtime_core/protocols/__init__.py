"""The dialects of other systems (docs/protocols.md), without I/O. Each module is imported only if it is needed.

The relay serves them, and the activator speaks them until a client has shown a token.
"""
