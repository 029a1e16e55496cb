"""The lines of the audit log that this process writes."""

from __future__ import annotations

import json
import logging
from types import TracebackType
from typing import Any, Self

from userrealtime_core import audit
from userrealtime_core.logging_setup import JsonFormatter


class AuditLines(logging.Handler):
    """Receives the lines of the audit log inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[dict[str, Any]] = []
        self._logger = logging.getLogger(audit.LOGGER)
        self._level = self._logger.level

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(json.loads(JsonFormatter().format(record)))

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the lines about an event, in order."""
        return [line for line in self.all if line["event"] == event]

    def __enter__(self) -> Self:
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
