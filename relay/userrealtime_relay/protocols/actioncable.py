"""Action Cable: its WebSocket. Its clients send nothing over HTTP."""

from __future__ import annotations

from typing import Final

from userrealtime_core.protocols.actioncable import ActionCable

DIALECTS: Final = {"/cable": ActionCable}
