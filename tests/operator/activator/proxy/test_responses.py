"""The bytes of rejections."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest
from websockets.frames import Close

from userrealtime_operator.activator.metrics import OUTCOMES
from userrealtime_operator.activator.proxy.responses import (
    RETRY_AFTER_S,
    Rejected,
    close_frame,
    evicted,
    http_response,
    overloaded,
    restarting,
    unauthorized,
    unavailable,
    unknown_host,
)

CORS = [("Access-Control-Allow-Origin", "*")]


def parse(response: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


def test_an_error_has_a_json_body_and_the_cors_headers() -> None:
    status, headers, body = parse(http_response(unknown_host(), CORS))
    assert status == "HTTP/1.1 404 Not Found"
    assert json.loads(body) == {"error": "not found"}
    assert headers["Content-Length"] == str(len(body))
    assert headers["Connection"] == "close"
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert "Retry-After" not in headers


def test_headers_of_a_rejection_replace_the_cors_headers() -> None:
    rejected = Rejected(HTTPStatus.OK, "", headers=[("Access-Control-Max-Age", "600")])
    status, headers, body = parse(http_response(rejected, CORS))
    assert (status, body) == ("HTTP/1.1 200 OK", b"")
    assert headers["Access-Control-Max-Age"] == "600"
    assert "Access-Control-Allow-Origin" not in headers


def test_unauthorized_names_the_scheme() -> None:
    assert parse(http_response(unauthorized(), ()))[1]["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("rejected", [overloaded(), evicted(), unavailable("later"), restarting()])
def test_a_temporary_rejection_has_a_random_retry_after(rejected: Rejected) -> None:
    values = {int(parse(http_response(rejected, ()))[1]["Retry-After"]) for _ in range(200)}
    assert values == set(range(RETRY_AFTER_S[0], RETRY_AFTER_S[1] + 1))


@pytest.mark.parametrize(
    ("rejected", "code"),
    [
        (unauthorized(), 1008),
        (overloaded(), 1013),
        (evicted(), 1013),
        (unavailable("later"), 1013),
        (restarting(), 1012),
    ],
)
def test_the_close_code_and_reason_of_a_websocket(rejected: Rejected, code: int) -> None:
    frame = close_frame(rejected)
    assert frame[0] == 0x88
    assert frame[1] == len(frame) - 2, "not masked"
    close = Close.parse(frame[2:])
    assert (close.code, close.reason) == (code, str(rejected))


@pytest.mark.parametrize(
    "rejected", [unknown_host(), unauthorized(), overloaded(), evicted(), unavailable(""), restarting()]
)
def test_every_outcome_is_a_label_of_the_metric(rejected: Rejected) -> None:
    assert rejected.outcome in OUTCOMES
