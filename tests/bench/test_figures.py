"""The figures of the benchmarks."""

from __future__ import annotations

import pytest

from bench.relay.figures import Row, beside, figure, percentile, table


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([1.0], 50, 1.0), ([3.0, 1.0, 2.0], 50, 2.0), ([*map(float, range(1, 101))], 99, 99.0), ([1.0, 2.0], 100, 2.0)],
)
def test_percentiles_are_values_that_occurred(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0421, "0.0421"), (36.42, "36.4"), (123.4, "123"), (2_140_812.0, "2,140,000"), (999.6, "1,000")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_the_table_has_medians_and_how_much_better_they_are() -> None:
    speed, memory = Row("speed", "1/s", True), Row("memory", "MiB", False)
    rows = {speed: {"ours": [300.0, 100.0, 200.0], "base": [100.0]}, memory: {"ours": [50.0], "base": [100.0]}}
    assert table(rows, ["ours", "base", "other"], "base").splitlines() == [
        "| | ours | base | other |",
        "|---|---|---|---|",
        "| speed, 1/s | 200 (2x) | 100 | — |",
        "| memory, MiB | 50 (2x) | 100 | — |",
    ]


def test_rows_without_a_figure_are_left_out() -> None:
    rows = {Row("speed", "1/s", True): {"other": [1.0]}}
    assert table(rows, ["ours"], "base").splitlines() == ["| | ours |", "|---|---|"]


def test_a_protocol_is_compared_with_its_own_server() -> None:
    speed, latency = Row("speed", "1/s", True), Row("latency", "ms", False)
    rows = {speed: {"relay:p": [300.0], "other": [100.0], "relay": [1.0]}, latency: {"other": [1.0]}}
    compared = beside(rows, "P", "relay:p", "other")
    assert compared == {Row("P: speed", "1/s", True): {"userrealtime": [300.0], "its own server": [100.0]}}
    assert beside(rows, "P", "relay:p", "absent")[Row("P: speed", "1/s", True)]["its own server"] == ()
