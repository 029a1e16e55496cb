"""Check that the documentation is written in plain technical English (`make lint`).

`python -m website.language` counts phrases for which the field has a plainer term. It fails if a page has more than
`LIMIT` of them per 1,000 words, and prints each of them with its place and with advice. CONTRIBUTING.md has the style
guide behind the list. A single phrase is always allowed, because some are correct in their context.

With arguments, it checks these files only, and prints their phrases even if they are below the limit.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from website.sources import ROOT

LIMIT: Final = 3.0
"""Phrases per 1,000 words that a page may have."""

PENDING: Final[frozenset[str]] = frozenset()
"""Pages that are not rewritten yet. Remove a page from this set when it meets the limit; never add one."""

_FOLDERS: Final = ("", "bench/**/", "clients/*/", "docs/**/", "examples/**/", "protocol/**/")
_FENCE: Final = re.compile(r" *(`{3,}|~{3,})")
_NOT_PROSE: Final = re.compile(r"`[^`\n]*`|\]\([^)\s]*\)|<!--.*?-->")
_WORD: Final = re.compile(r"[A-Za-z][A-Za-z']*")


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern, without regard to case, and the advice that is printed for it."""

    pattern: re.Pattern[str]
    advice: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A phrase that a rule has found, with the number of its line."""

    line: int
    phrase: str
    advice: str


@dataclass(frozen=True, slots=True)
class Report:
    """The number of words of a page, and its hits."""

    page: str
    words: int
    hits: tuple[Hit, ...]

    @property
    def density(self) -> float:
        """Hits per 1,000 words."""
        return 1000 * len(self.hits) / max(self.words, 1)

    @property
    def passes(self) -> bool:
        """Whether the page meets the limit. One hit is always allowed."""
        return len(self.hits) <= 1 or self.density <= LIMIT


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(re.compile(rf"\b(?:{pattern})(?!\w)", re.IGNORECASE), advice) for pattern, advice in pairs)


RULES: Final = _rules(
    # A sentence needs a noun as its subject.
    (r"whoever|who(?:se)? (?:sleeps?|connects?|waits?|asks?|signs?|comes?)", "name the subject: the client, the user"),
    (r"nobody|somebody|those (?:who|that)|one (?:who|that)", "use a noun: no client, a pod that"),
    (r"what (?:is|was) (?:missed|missing|wrong|sent|read|published|left|known|asked|older)", "use a noun"),
    # Verbs of speech and sight for programs.
    (r"(?:is|are|was|were|be|been|being) told|tells? of|told of", "notify, report, configure"),
    (r"hears?|heard", "receive, detect"),
    (r"sa(?:ys?|id) (?:so|of|how|what|which|whether|where|that)|is said", "report, state, contain"),
    (r"look(?:s|ed|ing)? (?:at|into|again)|a (?:close )?look", "check, poll, read, query"),
    # Translated idioms.
    (r"(?:cannot|can|could|to) be had", "is unavailable, is available"),
    (r"anew", "again, a new"),
    (r"(?:made?|makes?|making) up for", "replay, repair, catch up"),
    (r"goes by|go by|comes? to be|becomes? of|for want of", "say what happens: is removed by, is created, without"),
    (r"of (?:one's|its|their|his|her|our|your) own", "separate, dedicated, custom, existing"),
    (r"all is well|is no news|is none", "no problem, is ignored, is invalid"),
    (r"(?:is|are) to be", "must be, is"),
    (r"by (?:itself|themselves)", "automatically, without intervention"),
    (r"at once", "immediately; at the same time"),
    (r"(?:give|gives|given|giving) up", "stop, close, discard, time out"),
    (r"mend(?:s|ed|ing)?", "fix, repair"),
    (r"lest|beneath|likewise|in the manner of|so near|as it (?:stands|comes)", "or else, under, also, like, close to"),
    # Restriction by a trailing word.
    (r"and nothing else|, and no more", "only, exactly (before the restricted word)"),
    (r"(?:alone|too|besides)(?=[.;:])", "only, also (before the restricted word)"),
)


def pages(root: Path = ROOT) -> list[str]:
    """Return the pages to check, as paths in the repository."""
    found = {path for folder in _FOLDERS for path in root.glob(f"{folder}*.md")}
    names = (path.relative_to(root).as_posix() for path in found if "node_modules" not in path.parts)
    return sorted(set(names) - PENDING)


def check(page: str, text: str) -> Report:
    """Return the report of a page. Code blocks, inline code, comments and the targets of links do not count."""
    words, hits = 0, []
    for number, line in _prose(text):
        words += len(_WORD.findall(line))
        for rule in RULES:
            hits += [Hit(number, match[0], rule.advice) for match in rule.pattern.finditer(line)]
    return Report(page, words, tuple(sorted(hits, key=lambda hit: hit.line)))


def _prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines outside of code blocks, with their numbers."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        if fence:
            if line.strip() == fence:
                fence = ""
        elif opening := _FENCE.match(line):
            fence = opening[1]
        else:
            yield number, _NOT_PROSE.sub(" ", line)


def main(arguments: Sequence[str]) -> int:
    """Check the pages, print what to change, and return the exit status."""
    reports = [check(page, (ROOT / page).read_text(encoding="utf-8")) for page in arguments or pages()]
    for report in reports:
        if arguments or not report.passes:
            for hit in report.hits:
                print(f"{report.page}:{hit.line}: “{hit.phrase}”: {hit.advice}")
            print(f"{report.page}: {report.density:.1f} phrases per 1,000 words, {LIMIT} allowed")
    return 0 if all(report.passes for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
