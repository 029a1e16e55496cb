"""The JavaScript client, installed once as in an application for all tests that need it."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.clients.javascript import install


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("javascript"))
