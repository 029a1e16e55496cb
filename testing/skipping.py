"""The rule for tests whose programs are missing."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from testing.local.postgres import major_version


def skip(reason: str) -> NoReturn:
    """Skip the test and print the reason. With CI=true the test fails, because there no test may be skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def require_postgres(version: int, reason: str) -> None:
    """Skip the test on an older PostgreSQL, which only `python -m tests.postgres` starts. `reason` is what it lacks."""
    if major_version() < version:
        pytest.skip(f"PostgreSQL {major_version()} has no {reason}")
