"""Secrets of the environment, or in files of a directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from userrealtime_core.environment import MAXIMUM_CREDENTIAL_BYTES, ConfigError, Reader, read_credential
from userrealtime_operator.__main__ import main
from userrealtime_operator.config import ConfigError as OperatorConfigError
from userrealtime_operator.config import parse_config
from userrealtime_relay.bridge.config import Config as Bridge
from userrealtime_relay.config import Config as Relay

URL = "postgresql://relay:hunter2@db/app"
BROKER = "nats://relay:hunter3@nats:4222"
RELAY = {"USER_ID": "alice", "TOKEN_KEY": "k" * 32, "SIGNAL": "nats"}
FILE = "{namespaces: [users], relay: {image: x}, signals: {type: nats}}"

Read = Callable[[Mapping[str, str]], tuple[str, str]]


def relay(environment: Mapping[str, str]) -> tuple[str, str]:
    config = Relay.from_environment({**RELAY, **environment})
    assert config.broker_url is not None
    return config.database_url.reveal(), config.broker_url.reveal()


def bridge(environment: Mapping[str, str]) -> tuple[str, str]:
    config = Bridge.from_environment({"SIGNAL": "nats", **environment})
    return config.database_url.reveal(), config.broker_url.reveal()


def operator(environment: Mapping[str, str]) -> tuple[str, str]:
    config = parse_config(FILE, environment)
    return config.database_url, config.signals.url


PROCESSES = pytest.mark.parametrize(
    ("read", "broker"), [(relay, "NATS_URL"), (bridge, "NATS_URL"), (operator, "BROKER_URL")]
)


@PROCESSES
def test_urls_are_read_from_files_without_the_line_end(tmp_path: Path, read: Read, broker: str) -> None:
    (tmp_path / "DATABASE_URL").write_text(URL + "\r\n")
    (tmp_path / broker).write_text(BROKER + "\n")
    assert read({"CREDENTIALS_DIR": str(tmp_path)}) == (URL, BROKER)
    assert read({"DATABASE_URL": URL, broker: BROKER}) == (URL, BROKER)


@PROCESSES
def test_missing_files_are_reported_together_with_advice(tmp_path: Path, read: Read, broker: str) -> None:
    with pytest.raises((ConfigError, OperatorConfigError)) as wrong:
        read({"CREDENTIALS_DIR": str(tmp_path)})
    text = str(wrong.value)
    for name in ("DATABASE_URL", broker):
        file = f"{name}: the file {tmp_path / name} is missing: add the key {name} to the Secret that is mounted there"
        assert file in text
    assert "required" not in text


@PROCESSES
def test_a_secret_in_the_environment_and_in_a_file_is_rejected(tmp_path: Path, read: Read, broker: str) -> None:
    (tmp_path / "DATABASE_URL").write_text(URL)
    (tmp_path / broker).write_text(BROKER)
    environment = {"CREDENTIALS_DIR": str(tmp_path), "DATABASE_URL": URL}
    problem = "DATABASE_URL: set either it, or CREDENTIALS_DIR"
    with pytest.raises((ConfigError, OperatorConfigError), match=problem) as wrong:
        read(environment)
    assert "hunter" not in str(wrong.value)


@PROCESSES
def test_an_invalid_url_in_a_file_is_not_quoted(tmp_path: Path, read: Read, broker: str) -> None:
    (tmp_path / "DATABASE_URL").write_text("mysql://relay:hunter2@db/app")
    (tmp_path / broker).write_text("amqp://relay:hunter3@nats")
    with pytest.raises((ConfigError, OperatorConfigError)) as wrong:
        read({"CREDENTIALS_DIR": str(tmp_path)})
    text = str(wrong.value)
    assert "DATABASE_URL: must be a URL like postgresql://" in text
    assert f"{broker}: must be a URL like nats://" in text
    assert "hunter" not in text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty: set the key"),
        (b"\n", "is empty: set the key"),
        (b"\xff\xfe", "as UTF-8 text"),
        (b"x" * (MAXIMUM_CREDENTIAL_BYTES + 1), "has more than 65536 bytes"),
    ],
)
def test_a_file_with_bad_contents_is_rejected(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "DATABASE_URL").write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read_credential({"CREDENTIALS_DIR": str(tmp_path)}, "DATABASE_URL")


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "DATABASE_URL").mkdir()
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\): make it readable"):
        read_credential({"CREDENTIALS_DIR": str(tmp_path)}, "DATABASE_URL")


def test_a_file_of_another_secret_is_not_needed(tmp_path: Path) -> None:
    (tmp_path / "DATABASE_URL").write_text(URL)
    environment = {"CREDENTIALS_DIR": str(tmp_path)}
    config = parse_config("{namespaces: [users], relay: {image: x}, signals: {type: poll}}", environment)
    assert (config.database_url, config.signals.url) == (URL, "")
    assert Relay.from_environment({**RELAY, **environment, "SIGNAL": "poll"}).broker_url is None


def test_a_variable_that_is_not_set_is_empty() -> None:
    assert read_credential({}, "DATABASE_URL") == ""
    read = Reader({})
    assert (read.credential("DATABASE_URL"), read.problems) == ("", [])


def test_migrate_reads_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("CREDENTIALS_DIR", os.fspath(tmp_path))
    assert main(["migrate"]) == 2
    assert "DATABASE_URL: the file" in capsys.readouterr().err
    (tmp_path / "DATABASE_URL").write_text("postgresql://relay:hunter2@127.0.0.1:1/app")
    assert main(["migrate", "--wait", "0"]) == 1
    error = capsys.readouterr().err
    assert "127.0.0.1" in error
    assert "hunter2" not in error
