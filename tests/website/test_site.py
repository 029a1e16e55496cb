"""The site builds without a warning, has every page in its navigation, and fetches nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from testing.patience import PATIENCE_S
from website import sources
from website.sources import ROOT, place_of

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
# The URLs that a browser fetches, in contrast to links that a reader can follow.
_FETCHED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=\"?([^\s\">]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^(WARNING|ERROR)", done.stderr, re.MULTILINE), done.stderr
    return folder


def page(site: Path, uri: str) -> str:
    return (site / uri).with_suffix(".html").read_text()


@pytest.mark.parametrize("path", [*PAGES, *sources.PAGES])
def test_every_page_is_in_the_navigation(site: Path, path: str) -> None:
    uri = place_of(path).removesuffix(".md") + ".html"
    assert (site / uri).exists()
    assert re.search(rf'<a href="?(\./)?{re.escape(uri)}"? class="?md-nav__link', page(site, "index.md")), (
        f"{path} is not in the navigation of mkdocs.yml"
    )


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for file in site.rglob("*.html"):
        elsewhere = [address for address in _FETCHED.findall(file.read_text()) if urlsplit(address).netloc]
        assert not elsewhere, f"{file.relative_to(site)} fetches {elsewhere}"
    for file in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", file.read_text()), file


def test_nothing_of_the_build_machine_is_in_it(site: Path) -> None:
    for file in site.rglob("*.html"):
        assert str(ROOT) not in file.read_text(), file


@pytest.mark.parametrize("path", [*PAGES, *sources.PAGES])
def test_addresses_elsewhere_are_well_formed(path: str) -> None:
    for target in re.findall(r"\]\(((?!#|\.)[a-z]+:[^)]*)\)", (ROOT / path).read_text()):
        parts = urlsplit(target)
        assert parts.scheme in ("https", "mailto"), target
        assert " " not in target, target
        assert parts.scheme == "mailto" or "." in parts.netloc, target
