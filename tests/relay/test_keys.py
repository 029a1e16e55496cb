"""HS256 keys that change while the relay runs."""

from __future__ import annotations

import logging
from pathlib import Path

import asyncpg
import pytest

from testing.database import Database
from testing.relay.harness import client, closed, config, publish, receive, receive_ids, running, token, verifier_of
from userrealtime_core.auth import keys
from userrealtime_core.auth.errors import Unauthorized
from userrealtime_core.auth.keys import TokenKeys
from userrealtime_core.environment import ConfigError
from userrealtime_relay.config import Config

OLD, NEW, NEWEST = ("old " * 10, "new " * 10, "newest " * 10)
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"


class Mount:
    """A Secret, mounted as the kubelet does: files are links into a directory, which a link selects atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = 0

    def set(self, **values: str) -> None:
        self._version += 1
        version = self.path / f"..version_{self._version}"
        version.mkdir()
        for name, value in values.items():
            (version / name).write_text(value)
        link = self.path / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(self.path / "..data")
        for name in ("TOKEN_KEY", "TOKEN_KEY_NEXT", "TOKEN_KEY_PREVIOUS"):
            file = self.path / name
            if name in values and not file.is_symlink():
                file.symlink_to(f"..data/{name}")
            elif name not in values:
                file.unlink(missing_ok=True)


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mount:
    monkeypatch.setattr(keys, "READ_INTERVAL", 0)
    mount = Mount(tmp_path)
    mount.set(TOKEN_KEY=OLD)
    return mount


def test_both_keys_are_good_while_they_rotate() -> None:
    verify = verifier_of(config(NO_DATABASE, TOKEN_KEY=NEW, TOKEN_KEY_PREVIOUS=OLD))
    assert verify(token(key=NEW)) > 0
    assert verify(token(key=OLD)) > 0
    with pytest.raises(Unauthorized):
        verify(token(key=NEWEST))


def test_a_mounted_secret_is_followed(mount: Mount) -> None:
    current = TokenKeys.in_directory(mount.path)
    assert current() == (OLD,)
    mount.set(TOKEN_KEY=NEW + "\n", TOKEN_KEY_PREVIOUS=OLD)
    assert current() == (NEW, OLD)
    mount.set(TOKEN_KEY=NEW, TOKEN_KEY_NEXT=NEWEST)
    assert current() == (NEW, NEWEST)
    mount.set(TOKEN_KEY=NEWEST, TOKEN_KEY_PREVIOUS=NEW)
    assert current() == (NEWEST, NEW)
    mount.set(TOKEN_KEY=NEWEST)
    assert current() == (NEWEST,)


def test_it_is_not_looked_at_all_the_time(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "READ_INTERVAL", 600)
    current = TokenKeys.in_directory(mount.path)
    mount.set(TOKEN_KEY=NEW)
    assert current() == (OLD,)
    monkeypatch.setattr(keys, "READ_INTERVAL", 0)
    assert current() == (NEW,)


@pytest.mark.parametrize("bad", ["", "short-hunter2", "hunter2" * 1000, "-----BEGIN PUBLIC KEY-----" + "hunter2" * 9])
def test_after_a_bad_change_the_last_keys_stay(mount: Mount, bad: str, caplog: pytest.LogCaptureFixture) -> None:
    current = TokenKeys.in_directory(mount.path)
    with caplog.at_level(logging.ERROR):
        for values in ({"TOKEN_KEY": bad}, {"TOKEN_KEY": NEW, "TOKEN_KEY_PREVIOUS": bad}):
            caplog.clear()
            mount.set(**values)
            assert current() == (OLD,)
            assert current() == (OLD,)
            assert len(caplog.records) == 1
            assert "hunter2" not in str(caplog.records[0].__dict__)
    mount.set(TOKEN_KEY=NEW)
    assert current() == (NEW,)


def test_keys_that_are_gone_stay_too(mount: Mount) -> None:
    current = TokenKeys.in_directory(mount.path)
    mount.set()
    assert current() == (OLD,)


def test_what_is_wrong_at_the_start_is_told(mount: Mount) -> None:
    environment = {"USER_ID": "alice", "DATABASE_URL": NO_DATABASE, "TOKEN_KEY_DIR": str(mount.path)}
    assert Config.from_environment(environment).token_keys() == (OLD,)
    with pytest.raises(ConfigError, match="TOKEN_KEY_DIR: set either it, or TOKEN_KEY"):
        Config.from_environment({**environment, "TOKEN_KEY": NEW})
    mount.set(TOKEN_KEY="hunter2")
    with pytest.raises(ConfigError, match=r"TOKEN_KEY_DIR: .*TOKEN_KEY has 7 bytes") as raised:
        Config.from_environment(environment)
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"TOKEN_KEY_DIR: .*No such file"):
        Config.from_environment({**environment, "TOKEN_KEY_DIR": str(mount.path / "none")})


async def test_a_rotation_drops_nobody(mount: Mount, migrated: Database, connection: asyncpg.Connection) -> None:
    async with (
        running(migrated.url, TOKEN_KEY="", TOKEN_KEY_DIR=str(mount.path)) as relay,
        client(relay, token(key=OLD)) as first,
    ):
        await receive(first)
        # The next key is valid before it signs: signers can have it before this pod sees the switch.
        mount.set(TOKEN_KEY=OLD, TOKEN_KEY_NEXT=NEW)
        async with client(relay, token(key=OLD)) as before, client(relay, token(key=NEW)) as early:
            await receive(before)
            await receive(early)
        mount.set(TOKEN_KEY=NEW, TOKEN_KEY_PREVIOUS=OLD)
        async with client(relay, token(key=OLD)) as second, client(relay, token(key=NEW)) as third:
            await receive(second)
            await receive(third)
            mount.set(TOKEN_KEY=NEW)
            await publish(connection)
            for each in (first, second, third):
                assert await receive_ids(each, 1) == [1]
            async with client(relay, token(key=OLD)) as late:
                assert await closed(late) == (1008, "Unauthorized")
