"""The log of a process: one JSON object a line, on stdout.

    _logger.info("listening", extra={"fields": {"ws_port": 8080}})

What libraries say below a warning is left out: at debug level, websockets would print requests with their tokens.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from . import audit

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this task works for; empty for the process's own work."""


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `message`, `request_id` if it is about a request, then the record's `fields`, and `error` with
    its trace if there is an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if about := request_id.get():
            line["request_id"] = about
        line.update(getattr(record, "fields", {}))
        if record.exc_info is not None:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(level: str, *packages: str) -> None:
    """Send the log of this process to stdout, in JSON.

    Args:
        level: as in LOG_LEVEL.
        packages: the packages that log at this level, besides the core's; all others log from a warning on. The audit
            log is always complete.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("userrealtime_core", *packages):
        logging.getLogger(package).setLevel(level.upper())
    logging.getLogger(audit.LOGGER).setLevel(logging.INFO)
