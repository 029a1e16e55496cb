"""Server-Sent Events, in pieces of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from userrealtime_client.stream import EventStream

VECTORS = json.loads((Path(__file__).parents[2] / "protocol/vectors/stream.json").read_text())


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vector(case: dict[str, Any]) -> None:
    text = case["text"].encode()
    for size in (1, 2, 3, 7, len(text)):
        stream = EventStream()
        found = [data for begin in range(0, len(text), size) for data in stream.feed(text[begin : begin + size])]
        assert found == case["messages"], f"in pieces of {size}"


def test_what_is_no_utf_8_is_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        EventStream().feed(b"d\xff\n")
