"""The sections of CHANGELOG.md. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

UNRELEASED: Final = "Unreleased"
_HEADING: Final = re.compile(r"^## \[?(?P<name>[^\]\s]+)\]?(?: - (?P<date>\S+))?[ \t]*$", re.MULTILINE)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")
_KIND: Final = re.compile(r"^### (?P<kind>\S+)[ \t]*$", re.MULTILINE)
_ITEM: Final = re.compile(r"^- (?P<text>.*(?:\n  .*)*)", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """The changes of a version."""

    name: str
    date: str | None
    body: str

    @property
    def dated(self) -> bool:
        """Whether the heading has a date in the form 2026-12-31."""
        return self.date is not None and _DATE.fullmatch(self.date) is not None


@dataclass(frozen=True)
class Change:
    """An item of a section. `kind` is in lower case: added, changed, deprecated, removed, fixed or security."""

    kind: str
    text: str


def sections(text: str) -> dict[str, Section]:
    """Return the sections of a changelog by their names."""
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return {
        heading["name"]: Section(heading["name"], heading["date"], text[heading.end() : end].strip())
        for heading, end in zip(headings, ends, strict=False)
    }


def changes(section: Section) -> list[Change]:
    """Return the items of a section in their order, each as one line."""
    kinds = list(_KIND.finditer(section.body))
    ends = [kind.start() for kind in kinds[1:]] + [len(section.body)]
    return [
        Change(kind["kind"].lower(), " ".join(item["text"].split()))
        for kind, end in zip(kinds, ends, strict=False)
        for item in _ITEM.finditer(section.body, kind.end(), end)
    ]
