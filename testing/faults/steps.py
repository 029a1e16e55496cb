"""The steps in a `FaultEnvironment`: small values, which can be printed, shrunk and repeated."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from testing.relay.harness import USER

from .client import TRANSPORTS, Transport
from .environment import BRIDGES, RELAYS, WRITERS, FaultEnvironment
from .proxy import Mode

GRACE_S: Final = 1.5


class Step(ABC):
    """One thing that happens."""

    @abstractmethod
    async def run(self, world: FaultEnvironment) -> None: ...


@dataclass(frozen=True)
class Pause(Step):
    seconds: float

    async def run(self, world: FaultEnvironment) -> None:
        await asyncio.sleep(self.seconds)


@dataclass(frozen=True)
class Publish(Step):
    """In the writer's transaction, if it has one open; otherwise in a new transaction."""

    writer: int
    count: int
    size: int = 10

    async def run(self, world: FaultEnvironment) -> None:
        await world.writers[self.writer].publish(world.take_numbers(self.count), self.size)


@dataclass(frozen=True)
class Begin(Step):
    writer: int

    async def run(self, world: FaultEnvironment) -> None:
        await world.writers[self.writer].begin()


@dataclass(frozen=True)
class Savepoint(Step):
    writer: int

    async def run(self, world: FaultEnvironment) -> None:
        await world.writers[self.writer].savepoint()


@dataclass(frozen=True)
class UndoToSavepoint(Step):
    writer: int

    async def run(self, world: FaultEnvironment) -> None:
        await world.writers[self.writer].undo_to_savepoint()


@dataclass(frozen=True)
class Commit(Step):
    writer: int

    async def run(self, world: FaultEnvironment) -> None:
        await world.writers[self.writer].end(commit=True)


@dataclass(frozen=True)
class Rollback(Step):
    writer: int

    async def run(self, world: FaultEnvironment) -> None:
        await world.writers[self.writer].end(commit=False)


@dataclass(frozen=True)
class NewClient(Step):
    relay: int
    transport: Transport | None = None

    async def run(self, world: FaultEnvironment) -> None:
        await world.connect_client(self.relay, self.transport)


@dataclass(frozen=True)
class _OfClient(Step):
    client: int
    """The index of the client, modulo the number of clients, which is unknown when the plan is made."""

    def index(self, world: FaultEnvironment) -> int:
        return self.client % len(world.clients)


@dataclass(frozen=True)
class DropClient(_OfClient):
    async def run(self, world: FaultEnvironment) -> None:
        world.clients[self.index(world)].drop()


@dataclass(frozen=True)
class Sleep(_OfClient):
    async def run(self, world: FaultEnvironment) -> None:
        world.clients[self.index(world)].sleep()


@dataclass(frozen=True)
class Wake(_OfClient):
    async def run(self, world: FaultEnvironment) -> None:
        world.clients[self.index(world)].awake.set()


@dataclass(frozen=True)
class MoveClient(_OfClient):
    """The client's next connection leads to another relay, as behind a load balancer."""

    relay: int

    async def run(self, world: FaultEnvironment) -> None:
        link = world.client_links[self.index(world)]
        link.target = world.relays[self.relay].port
        link.cut()


@dataclass(frozen=True)
class HoldClient(_OfClient):
    """The client's connection is half-open. For a relay, this equals a client that does not read."""

    up: bool
    down: bool

    async def run(self, world: FaultEnvironment) -> None:
        world.client_links[self.index(world)].hold(up=self.up, down=self.down)


@dataclass(frozen=True)
class ReleaseClient(_OfClient):
    async def run(self, world: FaultEnvironment) -> None:
        world.client_links[self.index(world)].release()


@dataclass(frozen=True)
class StrandClient(_OfClient):
    """The client's connection is dead without a close. It can connect again."""

    async def run(self, world: FaultEnvironment) -> None:
        world.client_links[self.index(world)].strand()


@dataclass(frozen=True)
class Kill(Step):
    relay: int

    async def run(self, world: FaultEnvironment) -> None:
        await world.relays[self.relay].stop(grace_s=0)


@dataclass(frozen=True)
class Restart(Step):
    """Restart the relay gracefully. It is killed if it exceeds its grace period."""

    relay: int

    async def run(self, world: FaultEnvironment) -> None:
        await world.relays[self.relay].stop(grace_s=GRACE_S)
        await world.relays[self.relay].start()


@dataclass(frozen=True)
class Start(Step):
    relay: int

    async def run(self, world: FaultEnvironment) -> None:
        await world.relays[self.relay].start()


@dataclass(frozen=True)
class HoldPostgres(Step):
    """The relay's connection to Postgres is half-open."""

    relay: int
    up: bool
    down: bool

    async def run(self, world: FaultEnvironment) -> None:
        world.relays[self.relay].link.hold(up=self.up, down=self.down)


@dataclass(frozen=True)
class ReleasePostgres(Step):
    relay: int

    async def run(self, world: FaultEnvironment) -> None:
        world.relays[self.relay].link.release()


@dataclass(frozen=True)
class StrandPostgres(Step):
    """The relay's connection is dead without a close; it can connect again."""

    relay: int

    async def run(self, world: FaultEnvironment) -> None:
        world.relays[self.relay].link.strand()


@dataclass(frozen=True)
class CutPostgres(Step):
    relay: int

    async def run(self, world: FaultEnvironment) -> None:
        world.relays[self.relay].link.cut()


@dataclass(frozen=True)
class Notify(Step):
    """Change the treatment of a relay's notifications, from now on."""

    relay: int
    mode: Mode

    async def run(self, world: FaultEnvironment) -> None:
        world.relays[self.relay].mode[0] = self.mode


@dataclass(frozen=True)
class KillBroker(Step):
    """Kill the broker. Without a broker, this step and the next ones have no effect."""

    async def run(self, world: FaultEnvironment) -> None:
        if world.broker is not None:
            await world.broker.kill()


@dataclass(frozen=True)
class StartBroker(Step):
    async def run(self, world: FaultEnvironment) -> None:
        if world.broker is not None:
            await world.broker.start()


@dataclass(frozen=True)
class KillBridge(Step):
    bridge: int

    async def run(self, world: FaultEnvironment) -> None:
        if world.bridges:
            await world.bridges[self.bridge].stop(grace_s=0)


@dataclass(frozen=True)
class StartBridge(Step):
    bridge: int

    async def run(self, world: FaultEnvironment) -> None:
        if world.bridges:
            await world.bridges[self.bridge].start()


@dataclass(frozen=True)
class HoldBroker(Step):
    """The relay's connection to the broker is half-open."""

    relay: int
    up: bool
    down: bool

    async def run(self, world: FaultEnvironment) -> None:
        link = world.relays[self.relay].broker_link
        if link is not None:
            link.hold(up=self.up, down=self.down)


@dataclass(frozen=True)
class ReleaseBroker(Step):
    relay: int

    async def run(self, world: FaultEnvironment) -> None:
        link = world.relays[self.relay].broker_link
        if link is not None:
            link.release()


@dataclass(frozen=True)
class CutBroker(Step):
    relay: int

    async def run(self, world: FaultEnvironment) -> None:
        link = world.relays[self.relay].broker_link
        if link is not None:
            link.cut()


@dataclass(frozen=True)
class FalseAlarm(Step):
    """A manual NOTIFY on the channel of the user and of the announcer."""

    payload: str

    async def run(self, world: FaultEnvironment) -> None:
        notify = "select pg_notify(userrealtime.channel($1), $2), pg_notify('userrealtime_doorbell', $2)"
        async with world.connected() as connection:
            await connection.execute(notify, USER, self.payload)


@dataclass(frozen=True)
class Burst(Step):
    """Transactions of one event each, at a rate at which the announcer polls."""

    writer: int
    count: int

    async def run(self, world: FaultEnvironment) -> None:
        for _ in range(self.count):
            await world.writers[self.writer].publish(world.take_numbers(1), 10)


@dataclass(frozen=True)
class ForceNumbering(Step):
    """The writer's transaction, if it has one open, numbers its events before its commit."""

    writer: int

    async def run(self, world: FaultEnvironment) -> None:
        await world.writers[self.writer].force_numbering()


@dataclass(frozen=True)
class ReplicaRole(Step):
    """The writer's session sets session_replication_role."""

    writer: int
    replica: bool

    async def run(self, world: FaultEnvironment) -> None:
        await world.writers[self.writer].replicate(replica=self.replica)


@dataclass(frozen=True)
class KillAnnouncer(Step):
    """Kill the announcer. With a broker, this step and the next one have no effect."""

    async def run(self, world: FaultEnvironment) -> None:
        for announcer in world.announcers:
            await announcer.stop(grace_s=0)


@dataclass(frozen=True)
class StartAnnouncer(Step):
    async def run(self, world: FaultEnvironment) -> None:
        for announcer in world.announcers:
            await announcer.start()


@dataclass(frozen=True)
class FillNotifications(Step):
    """Fill the notification queue of the server. Only for a server with a small queue."""

    async def run(self, world: FaultEnvironment) -> None:
        await world.fill_notifications()


@dataclass(frozen=True)
class DrainNotifications(Step):
    async def run(self, world: FaultEnvironment) -> None:
        await world.drain_notifications()


@dataclass(frozen=True)
class TerminateBackends(Step):
    """Postgres ends the relays' connections."""

    async def run(self, world: FaultEnvironment) -> None:
        async with world.connected() as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'userrealtime-relay' and datname = current_database()"
            )


@dataclass(frozen=True)
class RestartPostgres(Step):
    async def run(self, world: FaultEnvironment) -> None:
        await world.restart_postgres("immediate")


@dataclass(frozen=True)
class Retain(Step):
    keep: int

    async def run(self, world: FaultEnvironment) -> None:
        await world.retain(self.keep)


@dataclass(frozen=True)
class SetBack(Step):
    by: int

    async def run(self, world: FaultEnvironment) -> None:
        await world.set_back(self.by)


@dataclass(frozen=True)
class BackUp(Step):
    async def run(self, world: FaultEnvironment) -> None:
        await world.back_up()


@dataclass(frozen=True)
class Restore(Step):
    async def run(self, world: FaultEnvironment) -> None:
        await world.restore()


def _directions(chance: random.Random) -> dict[str, bool]:
    return chance.choice(({"up": True, "down": True}, {"up": True, "down": False}, {"up": False, "down": True}))


_CHOICES: Final[tuple[tuple[int, Callable[[random.Random], Step]], ...]] = (
    (30, lambda c: Publish(c.randrange(WRITERS), c.choice((1, 1, 2, 5, 20)), c.choice((0, 10, 200)))),
    (3, lambda c: Publish(c.randrange(WRITERS), c.choice((120, 600)))),  # more than a ring, and more than a page
    (2, lambda c: Publish(c.randrange(WRITERS), 8, 60_000)),
    (12, lambda c: Pause(c.choice((0.01, 0.05, 0.2, 0.5)))),
    (5, lambda c: Begin(c.randrange(WRITERS))),
    (4, lambda c: Savepoint(c.randrange(WRITERS))),
    (3, lambda c: UndoToSavepoint(c.randrange(WRITERS))),
    (5, lambda c: Commit(c.randrange(WRITERS))),
    (2, lambda c: Rollback(c.randrange(WRITERS))),
    (5, lambda c: NewClient(c.randrange(RELAYS), c.choice(TRANSPORTS))),
    (6, lambda c: DropClient(c.randrange(6))),
    (5, lambda c: Sleep(c.randrange(6))),
    (5, lambda c: Wake(c.randrange(6))),
    (5, lambda c: MoveClient(c.randrange(6), c.randrange(RELAYS))),
    (4, lambda c: HoldClient(c.randrange(6), **_directions(c))),
    (5, lambda c: ReleaseClient(c.randrange(6))),
    (2, lambda c: StrandClient(c.randrange(6))),
    (4, lambda c: Kill(c.randrange(RELAYS))),
    (5, lambda c: Start(c.randrange(RELAYS))),
    (2, lambda c: Restart(c.randrange(RELAYS))),
    (4, lambda c: HoldPostgres(c.randrange(RELAYS), **_directions(c))),
    (5, lambda c: ReleasePostgres(c.randrange(RELAYS))),
    (2, lambda c: StrandPostgres(c.randrange(RELAYS))),
    (2, lambda c: CutPostgres(c.randrange(RELAYS))),
    (5, lambda c: Notify(c.randrange(RELAYS), c.choice(("pass", "drop", "double", "late")))),
    (2, lambda c: FalseAlarm(c.choice(("", "0", "999999", "no number")))),
    (3, lambda c: TerminateBackends()),
    (4, lambda c: Burst(c.randrange(WRITERS), c.choice((10, 40)))),
    (3, lambda c: ForceNumbering(c.randrange(WRITERS))),
    (2, lambda c: ReplicaRole(c.randrange(WRITERS), c.choice((True, False)))),
    (3, lambda c: KillAnnouncer()),
    (4, lambda c: StartAnnouncer()),
    (2, lambda c: RestartPostgres()),
    (3, lambda c: Retain(c.choice((0, 3, 30, 100)))),
    (2, lambda c: SetBack(c.choice((0, 1, 10, 200)))),
    (2, lambda c: BackUp()),
    (2, lambda c: Restore()),
)


_BROKER_CHOICES: Final[tuple[tuple[int, Callable[[random.Random], Step]], ...]] = (
    (4, lambda c: KillBroker()),
    (6, lambda c: StartBroker()),
    (4, lambda c: KillBridge(c.randrange(BRIDGES))),
    (5, lambda c: StartBridge(c.randrange(BRIDGES))),
    (3, lambda c: HoldBroker(c.randrange(RELAYS), **_directions(c))),
    (4, lambda c: ReleaseBroker(c.randrange(RELAYS))),
    (3, lambda c: CutBroker(c.randrange(RELAYS))),
)


def random_plan(seed: int, length: int, *, broker: bool = False) -> list[Step]:
    """Return the plan of a seed. It starts with clients of all transports."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    choices = _CHOICES + _BROKER_CHOICES if broker else _CHOICES
    weights = [weight for weight, _ in choices]
    start: list[Step] = [NewClient(chance.randrange(RELAYS), transport) for transport in ("sse", "poll")]
    return start + [make(chance) for _, make in chance.choices(choices, weights, k=length)]
