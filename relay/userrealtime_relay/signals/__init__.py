"""What wakes the relay when there may be more in the log.

A signal is a hint and carries nothing: whoever is woken reads the log. So a signal that is doubled, wrong or late
costs one empty read, a lost one is made up for by the safety poll, and a new broker is one function of this type.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from userrealtime_relay.log import Log

Wake = Callable[[], None]
Signal = Callable[[Log, str, Wake], AbstractAsyncContextManager[None]]
"""`signal(log, channel, wake)`: from entering, which returns once nothing can be missed any more, until leaving,
`wake` is called when there may be more for the user of `channel`, and when the source of signals was lost."""
