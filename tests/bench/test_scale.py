"""The benchmark of signals runs, every event reaches its socket, and its lines can be drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from bench.scale.plot import plot

ROOT = Path(__file__).parents[2]


def test_a_few_relays_over_a_broker(tmp_path: Path) -> None:
    drawn = tmp_path / "scale.svg"
    command = ["--modes", "listen", "nats", "--relays", "3", "--seconds", "0.5", "--plot", str(drawn)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", *command], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ")[:2] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows == [["| signal", "relays"], ["| listen", "3"], ["| nats", "3"]]
    ElementTree.parse(drawn)  # noqa: S314 (written by this program)


def test_every_line_is_drawn_and_named() -> None:
    lines = {"listen": [(1.0, 2000.0), (1000.0, 26.0)], "nats": [(1.0, 2000.0), (1000.0, 0.0)], "none": []}
    tree = ElementTree.fromstring(plot({"one": lines, "two": lines}))  # noqa: S314 (written by this program)
    drawn = [element for element in tree.iter() if element.tag.endswith("polyline")]
    assert len(drawn) == 2 * 3
    texts = {element.text for element in tree.iter() if element.tag.endswith("text")}
    assert {"listen", "nats", "none", "one", "two", "relays", "1,000"} <= texts


def test_broadcasts_to_a_few_relays() -> None:
    command = ["--modes", "listen", "nats", "--relays", "3", "--seconds", "0.5"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale.broadcasts", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in rows] == [["signal", "relays"], ["---", "---"], ["listen", "3"], ["nats", "3"]]
    for row in rows[2:]:
        assert all(" ms" in cell for cell in row[2:])


def test_tokens_of_a_few_streams() -> None:
    command = ["--users", "3", "--streams", "2", "3", "--intervals", "50", "--seconds", "0.5"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale.tokens", *command], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[2][:3] == ["50 ms", "2", "200"]  # more follow if the machine carries this one
    assert all(" ms" in row[6] for row in rows[2:])
