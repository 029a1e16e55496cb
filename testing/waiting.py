"""Waiting for the cluster. Blocking."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from .cluster import ClusterError
from .patience import PATIENCE_S


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds, at most PATIENCE_S. A cluster error counts as False."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if condition():
                return
            problem = ""
        except ClusterError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            pytest.fail(f"after {PATIENCE_S:.0f} s, not: {what} {problem}")
        time.sleep(0.2)
