"""Verification of users' tokens, as relays and activators do it.

tokens    checks the signature and the claims of a token; no I/O
keys      the HS256 keys of a user, from the environment or from a mounted Secret
jwks      the public keys of an identity provider, fetched from JWKS_URL
settings  which tokens are accepted
errors    why a token is not accepted
"""
