"""The keys of HS256 tokens: the current one and, while it is being replaced, the next one or the one before.

They come from the environment, or from a directory where a Secret is mounted. The directory is read again while the
relay runs, at most once a second and only when there is a token to check: so a key is replaced without a restart. The
kubelet replaces all files of a mounted Secret by one change of a symbolic link; the link is resolved once, and all
files are read from its target. If new keys are invalid, the error is logged and the last valid keys remain in use.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Final

CURRENT: Final = "TOKEN_KEY"
NEXT: Final = "TOKEN_KEY_NEXT"
"""Only in directories: a key that will sign soon. It is published first, and its first tokens are then valid."""
PREVIOUS: Final = "TOKEN_KEY_PREVIOUS"
MINIMUM_KEY_BYTES: Final = 32  # RFC 7518, 3.2: an HS256 key is at least as long as its hash
MAXIMUM_KEY_BYTES: Final = 4096
READ_INTERVAL: Final = 1.0
"""The shortest time in seconds between two reads of a directory."""

_logger = logging.getLogger(__name__)


class TokenKeys:
    """The current keys. They do not appear in its repr."""

    __slots__ = ("_directory", "_keys", "_problem", "_read_at")

    def __init__(self, *keys: str, directory: Path | None = None) -> None:
        self._keys = keys
        self._directory = directory
        self._read_at = time.monotonic()
        self._problem: str | None = None

    @classmethod
    def in_directory(cls, directory: Path) -> TokenKeys:
        """Return the keys in a directory, which is read again later.

        Raises:
            OSError, ValueError: they cannot be read or are invalid.
        """
        return cls(*_read(directory), directory=directory)

    def __call__(self) -> tuple[str, ...]:
        """Return the keys, the current one first; none if HS256 is not used."""
        now = time.monotonic()
        if self._directory is not None and now >= self._read_at + READ_INTERVAL:
            self._read_at = now
            self._refresh(self._directory)
        return self._keys

    def _refresh(self, directory: Path) -> None:
        try:
            keys = _read(directory)
        except (OSError, ValueError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _logger.error(
                    "could not read the token keys; the last ones remain in use",
                    extra={"fields": {"error": self._problem}},
                )
            return
        if keys != self._keys:
            _logger.info("the token keys have changed", extra={"fields": {"keys": len(keys)}})
        self._keys, self._problem = keys, None


def validate_key(key: str) -> str | None:
    """Return the problem of a key, without quoting it; None if it is valid."""
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
    # Editors and `echo` add a line end, which is not part of the key.
    key = content.decode(errors="surrogateescape").rstrip("\r\n")
    problem = validate_key(key)
    if problem is not None:
        raise ValueError(f"{path.name} {problem}")
    return key
