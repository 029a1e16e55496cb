"""The bridge's process, with short time limits, as in `relay`."""

from __future__ import annotations

import sys

from userrealtime_relay.bridge.__main__ import main

from .relay import shorten

if __name__ == "__main__":
    shorten()
    sys.exit(main())
