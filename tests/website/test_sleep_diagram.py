"""The state diagram of docs/sleep.md is that of the state machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from userrealtime_operator.sleep.machine import diagram
from website.sleep_diagram import PAGE, main, with_diagram


def test_the_page_has_the_diagram_of_the_machine() -> None:
    text = PAGE.read_text()
    assert diagram() in text
    assert with_diagram(text) == text, "run python -m website.sleep_diagram"


def test_an_old_diagram_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "sleep.md"
    page.write_text(PAGE.read_text().replace(diagram(), "stateDiagram-v2\n    [*] --> Old"))
    main(page)
    assert page.read_text() == PAGE.read_text()


@pytest.mark.parametrize("text", ["", "```mermaid\n```\n```mermaid\n```\n"])
def test_a_page_without_one_diagram_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="Mermaid blocks"):
        with_diagram(text)
