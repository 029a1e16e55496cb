"""The check of the language of the documentation, website/language.py."""

from pathlib import Path

import pytest

from website import language
from website.language import PENDING, RULES, check, main, pages
from website.sources import ROOT


def test_phrases_are_found_with_their_lines_and_advice() -> None:
    report = check("page.md", "# Title\n\nThe keys cannot be had.\nWhoever connects is told.\n")
    assert [(hit.line, hit.phrase) for hit in report.hits] == [
        (3, "cannot be had"),
        (4, "Whoever"),
        (4, "is told"),
    ]
    assert report.words == 10
    assert "unavailable" in report.hits[0].advice


@pytest.mark.parametrize(
    "text",
    [
        "`whoever` and `anew`",
        "```text\nwhoever looks at it anew\n```",
        "- item\n\n    ```sh\n    # tell of it anew\n    ```\n",
        "[a link](anew.md#at-once)",
        "<!-- anew -->",
        "renewed, mendacious, unlesting",
    ],
)
def test_code_and_parts_of_words_do_not_count(text: str) -> None:
    assert check("page.md", text).hits == ()


@pytest.mark.parametrize(
    ("words", "hits", "passes"), [(10, 1, True), (10, 2, False), (1000, 3, True), (1000, 4, False), (0, 0, True)]
)
def test_the_limit(words: int, hits: int, passes: bool) -> None:
    text = " ".join(["anew"] * hits + ["word"] * (words - hits))
    assert check("page.md", text).passes is passes


def test_every_rule_matches_something_and_has_advice() -> None:
    phrases = (
        "whoever, nobody, what is missed, is told, hears, says so, looks at, cannot be had, anew, made up for, goes by,"
        " of its own, all is well, is to be, by itself, at once, gives up, mends, beneath, and nothing else, alone."
    )
    assert [rule.advice for rule in RULES if not rule.pattern.search(phrases)] == []
    assert all(rule.advice for rule in RULES)


def test_pages_are_those_of_the_repository_without_pending_ones() -> None:
    found = pages()
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "docs/relay.md", "bench/operator/README.md"} <= set(found)
    assert not PENDING & set(found)
    assert all((ROOT / page).is_file() for page in PENDING), "remove a page that does not exist from PENDING"


def test_the_exit_status_and_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(language, "ROOT", tmp_path)
    (tmp_path / "good.md").write_text("The client reconnects.\n")
    (tmp_path / "bad.md").write_text("\nIt looks at it anew.\n")
    assert main(["good.md"]) == 0
    capsys.readouterr()
    assert main(["good.md", "bad.md"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "good.md: 0.0 phrases per 1,000 words, 3.0 allowed",
        "bad.md:2: “looks at”: check, poll, read, query",
        "bad.md:2: “anew”: again, a new",
        "bad.md: 400.0 phrases per 1,000 words, 3.0 allowed",
    ]


def test_the_documentation_meets_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out
