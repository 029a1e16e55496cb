"""Writes the state diagram of docs/sleep.md from the state machine: `python -m website.sleep_diagram`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from userrealtime_operator.sleep.machine import diagram
from website.sources import ROOT

PAGE: Final = ROOT / "docs" / "sleep.md"
_BLOCK: Final = re.compile(r"(?<=^```mermaid\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)


def with_diagram(text: str) -> str:
    """Return the page with the diagram of the current state machine.

    Raises:
        ValueError: the page does not have exactly one Mermaid block.
    """
    changed, count = _BLOCK.subn(lambda _: diagram() + "\n", text)
    if count != 1:
        raise ValueError(f"docs/sleep.md has {count} Mermaid blocks; it must have one, which is replaced")
    return changed


def main(page: Path = PAGE) -> int:
    """Write the page if its diagram differs."""
    text = page.read_text()
    changed = with_diagram(text)
    if changed != text:
        page.write_text(changed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
