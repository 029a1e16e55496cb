"""The code blocks of the pages, for the tests that run them exactly as a reader does.

A block names its language. The shell blocks of a page run in order and in one shell. In `console`, the lines after
`$ ` and the continuation lines after `> ` are commands; the others are the expected output, in which `…` matches
anything. A comment before a block changes that:

    <!-- not run: why -->               the block is not run by this test
    <!-- in another terminal -->        the block runs beside the following ones, until the end of the page
    <!-- run -->                        the block is Python, and runs among the shell blocks
    <!-- file: values.yaml -->          the block is a file of that name, which later blocks use
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path
from typing import Final

from website.sources import ROOT

SHELL: Final = ("sh", "console")
LANGUAGES: Final = (*SHELL, "css", "html", "http", "js", "json", "mermaid", "python", "sql", "text", "ts", "yaml")
_FENCE: Final = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>\S*)\s*$")
_COMMENT: Final = re.compile(r"^ *<!-- (?P<text>.*) -->$")
_TYPED: Final = re.compile(r"^\$ (?:.*\\\n)*.*\n(?:> .*\n)*", re.MULTILINE)
_MARK: Final = re.compile(r"(?P<kind>not run|file): (?P<what>.+)|(?P<word>run|in another terminal)")


class BlockError(ValueError):
    """A page has an invalid block. The message contains the page and the line."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page; `line` is the line of its fence. The marks come from the comment before it."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    file: str | None = None
    word: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the block is run in a shell."""
        typed = self.language in SHELL or (self.language == "python" and self.word == "run")
        return typed and self.not_run is None and self.file is None

    @property
    def commands(self) -> str:
        """The commands for a shell."""
        if self.language == "python":
            return f"python - <<'EOF'\n{self.text}EOF\n"
        if self.language == "console":
            return re.sub(r"^[$>] ", "", "".join(_TYPED.findall(self.text)), flags=re.MULTILINE)
        return self.text

    @property
    def output(self) -> list[str]:
        """The expected output, line by line."""
        if self.language != "console":
            return []
        return [line for line in _TYPED.sub("", self.text).splitlines() if line.strip()]


def pages(root: Path = ROOT) -> list[str]:
    """Return the pages whose blocks are run, as paths in the repository."""
    found = [root / "README.md", root / "bench/README.md", *root.glob("docs/**/*.md")]
    for folder in ("clients", "examples"):
        found += root.glob(f"{folder}/**/README.md")
    return sorted(path.relative_to(root).as_posix() for path in found if "node_modules" not in path.parts)


def blocks(page: str, text: str) -> Iterator[Block]:
    """Return the blocks of a page.

    Raises:
        BlockError: a block has no language or no end, or the comment before it has no meaning.
    """
    lines = text.splitlines()
    mark: re.Match[str] | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if comment := _COMMENT.match(line):
            mark = _MARK.fullmatch(comment["text"])
            if mark is None:
                raise BlockError(f"{page}:{number}: unknown comment {comment['text']!r}; see website/blocks.py")
            continue
        if opening := _FENCE.match(line):
            start, inside = number, []
            while number < len(lines) and lines[number].strip() != opening["fence"]:
                inside.append(lines[number].removeprefix(opening["indent"]))
                number += 1
            if number == len(lines):
                raise BlockError(f"{page}:{start}: this block has no end")
            number += 1
            yield _block(page, start, opening["language"], "".join(f"{each}\n" for each in inside), mark)
        elif re.match(r" {4,}\S", line) and not lines[max(number - 2, 0)].strip() and not _in_list(lines, number - 1):
            raise BlockError(f"{page}:{number}: an indented block; fence it, with its language")
        elif mark is not None and line.strip():
            raise BlockError(f"{page}:{number}: the comment before it belongs before a block")
        else:
            continue
        mark = None


def _block(page: str, line: int, language: str, text: str, mark: re.Match[str] | None) -> Block:
    if language not in LANGUAGES:
        raise BlockError(f"{page}:{line}: a block of {language or 'no language'}; known are {', '.join(LANGUAGES)}")
    kind, what = (mark["kind"], mark["what"]) if mark else (None, None)
    return Block(
        page,
        line,
        language,
        text,
        not_run=what if kind == "not run" else None,
        file=what if kind == "file" else None,
        word=mark["word"] if mark else None,
    )


def _in_list(lines: list[str], number: int) -> bool:
    """Return whether an indented line belongs to a list item: the last line without indentation begins one."""
    outer = (line for line in reversed(lines[:number]) if line.strip() and not line.startswith(" "))
    return bool(re.match(r"([-*+]|\d+\.) ", next(outer, "")))


def page_blocks(root: Path = ROOT) -> dict[str, list[Block]]:
    """Return the blocks of all pages. Raises the errors of `blocks`."""
    return {page: list(blocks(page, (root / page).read_text())) for page in pages(root)}


def missing_output(expected: list[str], got: str) -> str | None:
    """The first of the expected lines that does not come, in their order; None if all do.

    Spaces count as one. An address, an age, a time or a token matches any other; `…` and `...` for anything.
    """
    remaining = iter(_loose(line) for line in got.splitlines())
    for line in expected:
        wanted = re.compile(translate(re.sub(r"([\[?*])", r"[\1]", _loose(line)).replace("…", "*")))
        if not any(wanted.match(each) for each in remaining):
            return line
    return None


def _loose(line: str) -> str:
    line = line.replace("...", "…")
    line = re.sub(r"\bhttps?://[^\s\"',]+", "URL", line)
    line = re.sub(r"\b\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", line)
    line = re.sub(r"\beyJ[\w.…-]*", "TOKEN", line)
    line = re.sub(r"\b\d+(ms|s|m|h|d)(\d+(ms|s|m|h))?\b", "AGE", line)
    return " ".join(line.split())
