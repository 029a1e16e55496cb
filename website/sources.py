"""The place of a repository's file on the site, and the conversion of links.

Pages link to each other, and to any file of the repository, by relative paths, as a git forge shows them. On the site,
a page of docs/ has the same relative path. Some other pages have a separate path, and a file with a generated reference
is replaced by the reference. All other linked files are below `files/`: Markdown as a page, others as plain text. No
I/O except reading.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = "docs/"
FILES: Final = "files/"

# Pages that are not in docs/, by their path in the repository.
PAGES: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "bench/README.md": "bench.md",
}
# Sources that the site replaces by the generated reference of that name.
REFERENCES: Final = {
    "crds/userrealtimes.yaml": "reference/resource.md",
    "charts/userrealtime/values.yaml": "reference/values.md",
    "relay/userrealtime_relay/config.py": "reference/environment.md",
    "relay/userrealtime_relay/metrics.py": "reference/metrics.md",
}
_PLACES: Final = {**PAGES, **REFERENCES}
_SOURCES: Final = {uri: path for path, uri in PAGES.items()}
_LINK: Final = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#]+)(?P<after>#[^)\s]*)?(?=\))")
_CODE: Final = re.compile(r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[ ]*$|`+[^`\n]+`+", re.MULTILINE | re.DOTALL)
_LANGUAGES: Final = {".py": "python", ".sql": "sql", ".yaml": "yaml", ".ts": "ts", ".js": "js", ".mjs": "js"}


class LinkError(ValueError):
    """The target of a link does not exist in the repository. The message names the page and the target."""


def source_of(uri: str) -> str:
    """Return the path in the repository of a page of the site, except the `shown` ones."""
    return _SOURCES.get(uri) or (uri.removeprefix(FILES) if uri.startswith(FILES) else DOCS + uri)


def place_of(path: str) -> str:
    """Return the site's URI of a file of the repository, as a source: pages end in `.md`."""
    if path in _PLACES:
        return _PLACES[path]
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return f"{FILES}{path}" if path.endswith(".md") else f"{FILES}{path}.md"


def shown(path: str, root: Path = ROOT) -> str:
    """Return a page with the text of a file of the repository; for a folder, the names of its files."""
    language = _LANGUAGES.get(posixpath.splitext(path)[1], "text")
    if (root / path).is_dir():
        text = "\n".join(sorted(file.name for file in (root / path).iterdir() if file.name != "__pycache__"))
    else:
        text = (root / path).read_text().rstrip()
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n~~~~~~{language}\n{text}\n~~~~~~\n"


def links(markdown: str, source: str, root: Path = ROOT) -> Iterator[str]:
    """Return the repository's paths that a page links to.

    Raises:
        LinkError: one of them is not there.
    """
    for match in _LINK.finditer(_CODE.sub("", markdown)):
        if (path := _resolved(match["target"], source, root)) is not None:
            yield path


def rewritten(markdown: str, source: str, place: str, root: Path = ROOT) -> str:
    """A page's text with its links as the site needs them. `source` is its path in the repository, `place` on the site.

    Raises:
        LinkError: a link leads to no file.
    """

    def rewrite(match: re.Match[str]) -> str:
        path = _resolved(match["target"], source, root)
        if path is None:
            return match[0]
        target = posixpath.relpath(place_of(path), posixpath.dirname(place) or ".")
        return f"{match['before']}{target}{match['after'] or ''}"

    return outside_code(markdown, lambda text: _LINK.sub(rewrite, text))


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Return a page's text with `change` applied outside of code."""
    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def _resolved(target: str, source: str, root: Path) -> str | None:
    """Return the file that a link leads to, None for an external URL."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if (root / path / "README.md").is_file():
        path = f"{path}/README.md"
    if path.startswith("..") or not (root / path).exists():
        raise LinkError(f"{source}: the link to {target} leads to no file of the repository")
    return path
