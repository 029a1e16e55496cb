"""The time limits of tests, and of the commands that they call."""

from __future__ import annotations

from typing import Final

PATIENCE_S: Final = 180.0
"""With a limit, a test that hangs fails. A limit asserts nothing about speed: on an idle machine everything
happens within a few seconds, and on two cores with a load of eleven it takes many times as long. A limit that is part
of a promise, such as the time in which a lease expires, stands in its test."""

COMMAND_TIMEOUT_S: Final = PATIENCE_S + 30
"""The limit of a command that may itself wait for `PATIENCE_S` and then reports a result."""

WITHIN: Final = f"--timeout={PATIENCE_S:.0f}s"
"""The same limit as an option of `kubectl wait`, `delete` and `rollout status`, and of helm."""
