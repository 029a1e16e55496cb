"""The conversion of links in a git forge to links of the site."""

from __future__ import annotations

from pathlib import Path

import pytest

from website.sources import LinkError, links, place_of, rewritten, shown, source_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in (
        "README.md",
        "docs/log.md",
        "docs/a.svg",
        "bench/README.md",
        "crds/userrealtimes.yaml",
        "examples/x.py",
        "examples/x.md",
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("print(1)\n")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "link", "on_site"),
    [
        ("README.md", "docs/log.md#how", "log.md#how"),
        ("README.md", "docs/a.svg", "a.svg"),
        ("docs/log.md", "../README.md", "index.md"),
        ("docs/log.md", "../bench/README.md", "bench.md"),
        ("docs/log.md", "../bench", "bench.md"),
        ("docs/log.md", "../examples/x.py", "files/examples/x.py.md"),
        ("docs/log.md", "../examples/x.md", "files/examples/x.md"),
        ("docs/log.md", "../examples", "files/examples.md"),
        ("docs/log.md", "../crds/userrealtimes.yaml", "reference/resource.md"),
        ("bench/README.md", "../docs/log.md", "log.md"),
        ("docs/log.md", "#how", "#how"),
        ("docs/log.md", "https://example.com/a.md", "https://example.com/a.md"),
    ],
)
def test_a_link_leads_to_the_same_on_the_site(root: Path, source: str, link: str, on_site: str) -> None:
    assert rewritten(f"See [this]({link}).", source, place_of(source), root) == f"See [this]({on_site})."


def test_links_in_code_stay(root: Path) -> None:
    text = "`[a](b)`\n\n```text\n[a](b)\n```\n\n[log](docs/log.md)\n"
    assert rewritten(text, "README.md", "index.md", root) == text.replace("docs/log.md", "log.md")
    assert list(links(text, "README.md", root)) == ["docs/log.md"]


@pytest.mark.parametrize("link", ["missing.md", "../../elsewhere.md", "../exemples"])
def test_a_link_to_nothing_is_told(root: Path, link: str) -> None:
    with pytest.raises(LinkError, match=r"docs/log\.md: the link to "):
        rewritten(f"[this]({link})", "docs/log.md", "log.md", root)


def test_places_and_sources_are_each_others_inverse() -> None:
    for path in ("README.md", "bench/README.md", "CHANGELOG.md", "docs/log.md", "clients/js/README.md"):
        assert source_of(place_of(path)) == path


def test_a_file_is_shown_as_it_is(root: Path) -> None:
    assert "\nx.md\nx.py\n" in shown("examples", root)
    assert shown("examples/x.py", root).endswith("# examples/x.py\n\n~~~~~~python\nprint(1)\n~~~~~~\n")
