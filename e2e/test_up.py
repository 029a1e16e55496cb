"""`make up` as a new user runs it: it needs no input, and ends with events."""

from __future__ import annotations

import os
import re
import subprocess

from testing.client import http_get
from testing.patience import PATIENCE_S
from testing.system import ROOT, System


def test_make_up_ends_after_the_first_events_in_ci(system: System) -> None:
    done = subprocess.run(
        ["make", "up"],
        cwd=ROOT,
        env={**os.environ, "CI": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^ +\d\d:\d\d:\d\d +\d+ +order\.insert ", done.stdout, re.MULTILINE)) == 3
    assert re.search(r"^alice +alice +True ", done.stdout, re.MULTILINE)
    page = re.search(r"^All up after \d+ s: (\S+) in a browser", done.stdout, re.MULTILINE)
    assert page is not None
    with http_get(page[1], {}) as answer:
        assert b"<title>userrealtime demo</title>" in answer.read()
    assert re.search(r'^ +\{"type": "auth", "token": "ey', done.stdout, re.MULTILINE)
