"""The notifiers: the default and the choice of one user, the URL of a broker, and the limit of listeners."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from testing.operator.fixture import ReconcilerFixture
from testing.operator.names import child_name
from testing.operator.samples import CONFIG, SECRETS, body, by_part, resource
from userrealtime_operator.config import ConfigError, parse_config
from userrealtime_operator.kube.types import Object, ObjectKey
from userrealtime_operator.manifests.children import desired_objects
from userrealtime_operator.model.naming import CREDENTIALS
from userrealtime_operator.model.notifiers import Listeners, SignalDefaults, SignalError, SignalType

URL = "nats://relay:hunter2@nats.nats:4222"
WITH_NATS = replace(CONFIG, signals=SignalDefaults(SignalType.NATS, URL))


def config_of(section: str, **environment: str) -> SignalDefaults:
    text = f"namespaces: [users]\nrelay: {{image: i, signal: poll}}\nsignals: {section}"
    return parse_config(text, {"DATABASE_URL": "postgresql://x", **environment}).signals


def parts(signal: str | None = None, config: object = WITH_NATS) -> tuple[dict[str, str], dict[str, object], Object]:
    """Return the URLs of a user's pods, their environment and annotations for this `spec.relay.signal`."""
    relay = {} if signal is None else {"signal": signal}
    objects = by_part(desired_objects(resource(relay=relay), config, SECRETS))  # type: ignore[arg-type]
    secret, deployment = objects[CREDENTIALS], objects["Deployment"]
    data = {name: base64.b64decode(text).decode() for name, text in secret["data"].items()}
    template = deployment["spec"]["template"]
    env = {
        entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in template["spec"]["containers"][0]["env"]
    }
    return data, env, template["metadata"]["annotations"]


def test_the_brokers_url_is_in_the_secret_and_nowhere_else() -> None:
    data, env, _ = parts()
    assert data["NATS_URL"] == URL
    assert env["SIGNAL"] == "nats"
    assert "NATS_URL" not in env
    objects = by_part(desired_objects(resource(), WITH_NATS, SECRETS))
    del objects[CREDENTIALS]
    assert "hunter2" not in str(objects)
    encoded = base64.b64encode(URL.encode()).decode()
    assert encoded not in str(objects)
    assert "hunter2" not in repr(WITH_NATS.signals)


def test_another_url_replaces_the_pod() -> None:
    changed = replace(CONFIG, signals=SignalDefaults(SignalType.NATS, URL + "1"))
    assert parts()[2] != parts(config=changed)[2]


@pytest.mark.parametrize("wish", ["auto", "listen", "poll"])
def test_a_user_may_do_without_the_broker(wish: str) -> None:
    data, env, annotations = parts(wish)
    assert env["SIGNAL"] == wish
    assert "NATS_URL" not in data | env
    assert annotations == parts(wish, CONFIG)[2]


def test_a_broker_that_is_not_set_up_is_refused() -> None:
    for config, wish in ((WITH_NATS, "redis"), (CONFIG, "nats")):
        with pytest.raises(SignalError, match=rf"spec\.relay\.signal: {wish} is not configured"):
            parts(wish, config)


async def test_it_says_so_of_itself() -> None:
    world = ReconcilerFixture()
    world.add(body("alice", relay={"signal": "nats"}))
    await world.reconcile()
    assert world.condition("Ready")[:2] == ("False", "InvalidSignal")
    assert "signals.type of the chart is auto" in world.condition("Ready")[2]


def test_the_configuration() -> None:
    assert config_of("{}") == SignalDefaults(SignalType.POLL)
    assert config_of("{type: listen, maxListeners: 0}") == SignalDefaults(SignalType.LISTEN, max_listeners=None)
    assert config_of("{type: redis}", BROKER_URL="rediss://r") == SignalDefaults(SignalType.REDIS, "rediss://r")
    assert config_of("{type: poll}", BROKER_URL="nonsense").url == ""
    for section, url, complaint in (
        ("{type: nats}", "", "BROKER_URL: required with nats as signal: a URL like nats://"),
        ("{type: nats}", "redis://hunter2", "BROKER_URL: must be a URL like nats://"),
        ("{type: redis}", "redis://u:hunter2/x@r:6379", "percent-encoded"),
        ("{type: pigeon}", "", r"signals\.type: must be 'auto', 'listen', 'poll', 'nats', 'redis' or 'kafka'"),
        ("{idleAfter: 2h}", "", r"signals\.idleAfter: '7200' is not a number of seconds from 0 to 3600"),
        ("{maxListeners: -1}", "", r"signals\.maxListeners: must be a whole number"),
    ):
        with pytest.raises(ConfigError, match=complaint) as wrong:
            config_of(section, BROKER_URL=url)
        assert "hunter2" not in str(wrong.value)


def test_too_many_listeners_are_reported_until_they_are_a_fifth_fewer() -> None:
    listeners = Listeners(10)
    for user in range(10):
        listeners.see(user, listens=True)
        listeners.see("somebody who polls", listens=False)
        assert not listeners.too_many
    listeners.see(10, listens=True)
    assert (listeners.too_many, len(listeners)) == (True, 11)
    for user in range(3):
        assert listeners.too_many
        listeners.see(user, listens=False)
    assert (listeners.too_many, len(listeners)) == (False, 8)
    unlimited = Listeners(None)
    for user in range(1000):
        unlimited.see(user, listens=True)
    assert not unlimited.too_many


async def test_too_many_listeners_are_reported_together_with_another_change() -> None:
    config = replace(CONFIG, signals=SignalDefaults(max_listeners=2))
    world = ReconcilerFixture()
    world.restart(config)
    await world.serve("bob", "carol")
    assert "ListenersWithinLimit" not in str(world.api.resources)
    await world.serve("dave")
    assert world.condition("ListenersWithinLimit", "dave")[:2] == ("False", "TooManyListeners")
    assert "signals.type" in world.condition("ListenersWithinLimit", "dave")[2]
    assert "ListenersWithinLimit" not in str(world.api.resources["users", "bob"])  # nothing was written for it
    assert await world.reconcile("bob") == ["status"]
    assert await world.reconcile("bob") == []
    assert world.api.events == []
    # The number of users is known right after a restart: no status is written twice.
    world.restart(config)
    world.reconciler.resume_rollouts(world.api.resources.values())
    for name in ("bob", "dave"):
        assert await world.reconcile(name) == []
    # Sleeping, removed and polling users do not count as listening.
    world.api.children[ObjectKey("Deployment", "users", child_name("carol"))]["spec"]["replicas"] = 0
    world.api.resources["users", "dave"]["spec"]["relay"]["signal"] = "poll"
    await world.reconcile("dave")
    del world.api.resources["users", "bob"]
    await world.reconcile("bob")
    assert "ListenersWithinLimit" not in str(world.api.resources["users", "dave"])
