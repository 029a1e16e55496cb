from __future__ import annotations

import json
import logging

import pytest

from userrealtime_core.logging_setup import JsonFormatter, set_up


def test_a_line_is_one_json_object() -> None:
    record = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "two\nlines", "fields": {"n": 1}})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert fields.pop("time").endswith("+00:00")
    assert fields == {"level": "info", "message": "two\nlines", "n": 1}


def test_an_exception_is_in_the_line() -> None:
    try:
        raise ValueError("wrong")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "it failed", "exc_info": (ValueError, error, error.__traceback__)})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["error"].endswith("ValueError: wrong")


def test_libraries_are_not_heard_below_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    root, packages = logging.getLogger(), [logging.getLogger(f"userrealtime_{name}") for name in ("core", "relay")]
    handlers, level, levels = root.handlers[:], root.level, [package.level for package in packages]
    try:
        set_up("debug", "userrealtime_relay")
        logging.getLogger("websockets.server").info("GET /ws?token=...")
        logging.getLogger("websockets.server").warning("careful")
        logging.getLogger("userrealtime_relay.delivery.tail").debug("detail")
        set_up("error", "userrealtime_relay")
        logging.getLogger("userrealtime_relay.delivery.tail").warning("unheard")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for package, former in zip(packages, levels, strict=True):
            package.setLevel(former)
    lines = [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["careful", "detail"]
