"""The subscription of a relay to its broker.

Without the broker, events wait for the next poll. Each new connection to the broker counts as a signal.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Final, cast

from userrealtime_core.environment import ConfigError
from userrealtime_core.reconnect import Reconnect
from userrealtime_core.secret import Secret
from userrealtime_core.wire.position import LogPosition
from userrealtime_relay.metrics import Metrics

from . import Broker, Subscription, Unreachable, decode

BROKERS: Final = ("nats", "redis", "kafka")

_logger = logging.getLogger(__name__)


def load(name: str) -> Broker:
    """The broker of one of the names in `BROKERS`. Only then is its library imported: its memory is paid once per user.

    Raises:
        ConfigError: the library is not installed.
    """
    try:
        return cast(Broker, importlib.import_module(f"{__package__}.{name}"))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"SIGNAL: {name} needs the package {error.name}, which is not installed: "
            f"take an image that has it, or pip install 'userrealtime[{name}]'"
        ) from None


async def follow(
    broker: Broker,
    url: Secret,
    user_id: str,
    on_message: Callable[[LogPosition | None], None],
    metrics: Metrics,
    broadcasts: Subscription | None = None,
) -> None:
    """Pass the signals of a broker for one user to `on_message`, until cancelled; None if some may have been missed.

    Broadcasts are passed to their own receiver.
    """
    reconnect = Reconnect(
        (Unreachable,), _logger, "no connection to the broker, retrying; the log is polled meanwhile", describe=str
    )

    def heard(message: bytes) -> None:
        if not message:
            reconnect.succeeded()
            metrics.broker_connected.set(1)
            _logger.info("connected to the broker")
        on_message(decode(message))

    def failed() -> None:
        metrics.broker_connected.set(0)
        metrics.broker_failures.inc()

    await reconnect.run(lambda: broker.subscribe(url, user_id, heard, broadcasts), failed)
