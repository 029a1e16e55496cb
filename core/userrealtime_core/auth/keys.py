"""The keys of HS256 tokens: the current one and, while it is being replaced, the next one or the one before.

They come from the environment, or from a directory that a Secret is mounted at. That is looked at again while the relay
runs, so that a key is replaced without a restart: at most once a second, and only when there is a token to check. A
mounted Secret changes all of its files at once, by turning one symbolic link; so the link is followed once, and all
files are read from where it led. What is wrong with new keys is logged, and the last good ones stay.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Final

CURRENT: Final = "TOKEN_KEY"
NEXT: Final = "TOKEN_KEY_NEXT"
"""In directories alone: a key that is to sign soon, published here first so that its first tokens are good."""
PREVIOUS: Final = "TOKEN_KEY_PREVIOUS"
MINIMUM_KEY_BYTES: Final = 32  # RFC 7518, 3.2: an HS256 key is at least as long as its hash
MAXIMUM_KEY_BYTES: Final = 4096
LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at a directory, at least."""

_logger = logging.getLogger(__name__)


class TokenKeys:
    """The keys as they are now. Shows none of them in a repr."""

    __slots__ = ("_directory", "_keys", "_looked", "_problem")

    def __init__(self, *keys: str, directory: Path | None = None) -> None:
        self._keys = keys
        self._directory = directory
        self._looked = time.monotonic()
        self._problem: str | None = None

    @classmethod
    def in_directory(cls, directory: Path) -> TokenKeys:
        """The keys in a directory, now and later.

        Raises:
            OSError, ValueError: they cannot be read, or are none.
        """
        return cls(*_read(directory), directory=directory)

    def __call__(self) -> tuple[str, ...]:
        """The keys, the current one first; none at all if HS256 is not in use."""
        now = time.monotonic()
        if self._directory is not None and now >= self._looked + LOOK_INTERVAL:
            self._looked = now
            self._look(self._directory)
        return self._keys

    def _look(self, directory: Path) -> None:
        try:
            keys = _read(directory)
        except (OSError, ValueError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _logger.error(
                    "the token keys cannot be read again; the last ones stay",
                    extra={"fields": {"error": self._problem}},
                )
            return
        if keys != self._keys:
            _logger.info("the token keys have changed", extra={"fields": {"keys": len(keys)}})
        self._keys, self._problem = keys, None


def validate_key(key: str) -> str | None:
    """What is wrong with a key, in words that do not contain it; None if nothing is."""
    # Surrogates are bytes of the environment that are not UTF-8.
    size = len(key.encode(errors="surrogatepass"))
    if size < MINIMUM_KEY_BYTES:
        return f"has {size} bytes; an HS256 key needs at least {MINIMUM_KEY_BYTES}"
    if size > MAXIMUM_KEY_BYTES:
        return f"has more than {MAXIMUM_KEY_BYTES} bytes"
    if any("\ud800" <= character <= "\udfff" for character in key) or "-----BEGIN" in key or key.startswith("ssh-"):
        return "must be a random UTF-8 string, not a key of a key pair"
    return None


def _read(directory: Path) -> tuple[str, ...]:
    current = Path(os.path.realpath(directory / CURRENT, strict=True))
    others = (current.with_name(name) for name in (NEXT, PREVIOUS))
    return tuple(_read_key(path) for path in (current, *(other for other in others if other.exists())))


def _read_key(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MAXIMUM_KEY_BYTES + 3)
    # An editor or `echo` leaves a line's end behind, which is no part of a key.
    key = content.decode(errors="surrogateescape").rstrip("\r\n")
    problem = validate_key(key)
    if problem is not None:
        raise ValueError(f"{path.name} {problem}")
    return key
