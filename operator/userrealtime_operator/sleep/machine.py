"""The state machine of sleep. No I/O and no clock: `next_step` decides, and `controller` observes and executes.

`TRANSITIONS` is the whole machine; docs/sleep.md has a diagram of it.
An event of a user leads to the next state. A state has at most one event at a time, and several events can follow one
another in one step, such as the end of a drain and the removal of its slice.

`ASLEEP` is recorded in the user's Deployment and survives a restart of the operator. Only the process remembers the
other states: an operator that takes over finds the user awake, and begins again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from userrealtime_operator.kube.timestamps import parse_timestamp, rfc3339
from userrealtime_operator.model.conditions import ConditionResult

from .state import Asleep

SETTLE_S: Final = 2.0
"""The time between the slice and the pod's end. A relay reports a new client after at most one second."""
ENDPOINT_S: Final = 0.5
"""The interval at which the endpoints of the Service are checked for a pod that has become available."""
DATABASE_S: Final = 15.0
"""The time until presence is read again after the database was unavailable."""
WOKEN: Final = ConditionResult(False, "WakeRequested", "a connection has woken the user")


class State(enum.Enum):
    """A state of a user. The value is its name in the diagram."""

    AWAKE = "Awake"
    """The pod serves; the activators are on standby."""
    IDLE_CANDIDATE = "IdleCandidate"
    """The pod serves; the last poll of presence found no clients, and the check of this user is pending."""
    DRAINING = "Draining"
    """New connections can reach an activator; the pod ends if no client connects until the drain is over."""
    ASLEEP = "Asleep"
    """The Deployment has 0 replicas, and all connections reach an activator."""
    PARKED = "Parked"
    """The Deployment has 0 replicas, and activators keep the connections of idle clients."""
    WAKING = "Waking"
    """The pod starts; connections reach an activator until the pod is among the endpoints."""


class Event(enum.Enum):
    """The cause of a transition. The value is its description in the diagram."""

    SEEMS_IDLE = "no client for idle.after, or no traffic for idle.parkAfter"
    IDLE_CONFIRMED = "no client, and every pod has reported"
    QUIET_CONFIRMED = "clients without activity for idle.parkAfter"
    CLIENTS_LEFT = "no client is parked"
    IN_USE = "a client, a wake request, or a pod that has not reported"
    BLOCKED = "sleep is disabled, or no activator is ready"
    USAGE_UNKNOWN = "the database is unavailable"
    WAKE_REQUESTED = "a wake request"
    POD_MISSING = "no pod is available"
    SLICE_FOUND = "the slice leads to activators"
    SLICE_MISSING = "a pod is available, and no slice leads to activators"
    POD_SERVES = "the pod is among the endpoints"


TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    State.AWAKE: {
        Event.SEEMS_IDLE: State.IDLE_CANDIDATE,
        Event.POD_MISSING: State.WAKING,
        Event.SLICE_FOUND: State.WAKING,
    },
    State.IDLE_CANDIDATE: {
        Event.IDLE_CONFIRMED: State.DRAINING,
        Event.QUIET_CONFIRMED: State.DRAINING,
        Event.IN_USE: State.AWAKE,
        Event.BLOCKED: State.AWAKE,
        Event.USAGE_UNKNOWN: State.AWAKE,
    },
    State.DRAINING: {
        Event.IDLE_CONFIRMED: State.ASLEEP,
        Event.QUIET_CONFIRMED: State.PARKED,
        Event.IN_USE: State.WAKING,
        Event.BLOCKED: State.WAKING,
        Event.USAGE_UNKNOWN: State.WAKING,
    },
    State.ASLEEP: {
        Event.WAKE_REQUESTED: State.WAKING,
        Event.BLOCKED: State.WAKING,
    },
    State.PARKED: {
        Event.WAKE_REQUESTED: State.WAKING,
        Event.BLOCKED: State.WAKING,
        Event.CLIENTS_LEFT: State.ASLEEP,
    },
    State.WAKING: {
        Event.POD_SERVES: State.AWAKE,
        Event.SLICE_MISSING: State.AWAKE,
        Event.SEEMS_IDLE: State.IDLE_CANDIDATE,
    },
}
"""The next state, by state and event. No other event is possible in a state."""

WITHOUT_POD: Final = frozenset({State.ASLEEP, State.PARKED})
"""The states in which the Deployment has 0 replicas, and records the sleep."""

WITH_SLICE: Final = frozenset({State.DRAINING, State.WAKING}) | WITHOUT_POD
"""The states in which new connections can reach the activators: their endpoints are ready, not on standby."""


class Check(enum.Enum):
    """An observation that costs requests, and is made only if a step needs it."""

    USAGE = enum.auto()
    """Read the user's pods, and their presence rows."""
    ENDPOINTS = enum.auto()
    """Read the endpoints that the cluster has for the user's Service."""


class Usage(enum.Enum):
    """The result of `Check.USAGE`."""

    IDLE = enum.auto()
    QUIET = enum.auto()
    """Clients are connected, but nothing was sent in either direction for `idle.parkAfter`."""
    IN_USE = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Memory:
    """What the operator remembers of a user between two steps. The default is a user that is awake."""

    state: State = State.AWAKE
    asleep: Asleep | None = None
    """The record that the Deployment has, or gets when the drain is over. Set in DRAINING, ASLEEP and PARKED."""
    drained_at: float | None = None
    """The monotonic time at which the drain is over; None until the slice was observed."""
    woken_at: datetime | None = None
    """When the wake was requested that has not ended yet."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The facts about a user and the activators at the time of a step."""

    now: datetime
    clock: float
    """The monotonic time."""
    recorded: Asleep | None
    """The sleep that the Deployment records, None if the user is awake."""
    wake_requested: str
    """`status.wakeRequestedAt`, empty if there is none."""
    slice_exists: bool
    """Whether a slice exists whose endpoints are ready, and not on standby."""
    pod_available: bool
    """Whether the current version of the Deployment has an available pod."""
    blocker: ConditionResult | None
    """Why the user must not sleep."""
    activators_known: bool
    """Whether the addresses of ready activators are known. A slice needs them."""
    awake: ConditionResult
    """The condition of a user that is awake and was not woken."""
    pod_missing: bool = False
    """Whether no version of the Deployment has an available pod."""
    was_woken: bool = False
    """Whether the condition in the status has the reason WakeRequested."""
    usage: Usage | None = None
    """None if it was not checked."""
    usage_error: str = ""
    pod_serves: bool | None = None
    """Whether a pod is among the endpoints of the Service, None if that was not checked."""
    parked_clients: int | None = None
    """The number of clients that the activators have reported, None if it is unknown."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to do for a user now."""

    memory: Memory
    """The state after the step."""
    condition: ConditionResult
    """The condition Asleep."""
    check: Check | None = None
    """If set, do nothing yet: make this observation, and call `next_step` again with `memory`."""
    recheck_s: float | None = None
    """The time until the next step; None if it follows a change in the cluster."""
    wake_s: float | None = None
    """The duration of the wake that has ended."""
    events: tuple[Event, ...] = ()
    """The events of this step, in their order."""

    @property
    def asleep(self) -> Asleep | None:
        """The sleep that the Deployment must record, None if the user must be awake."""
        return self.memory.asleep if self.memory.state in WITHOUT_POD else None

    @property
    def slice(self) -> bool:
        """Whether the slice must have ready endpoints."""
        return self.memory.state in WITH_SLICE


def mark_idle(memory: Memory) -> Memory:
    """Return the memory of a user whose presence rows have shown no client for long enough."""
    if Event.SEEMS_IDLE not in TRANSITIONS[memory.state]:
        return memory
    return replace(memory, state=TRANSITIONS[memory.state][Event.SEEMS_IDLE])


def next_step(memory: Memory, seen: Observation) -> Step:
    """Return the next step for a user, from the remembered state and the current facts."""
    began = memory = _current(memory, seen)
    wake_s: float | None = None
    events: list[Event] = []
    while True:
        event = _event(memory, seen, served=Event.POD_SERVES in events)
        if isinstance(event, Check):
            return Step(began, _condition(memory, seen, began), check=event)
        if event is None:
            condition = _condition(memory, seen, began)
            return Step(memory, condition, None, _recheck_s(memory, seen), wake_s, tuple(events))
        if event is Event.POD_SERVES and memory.woken_at is not None:
            wake_s = max(0.0, (seen.now - memory.woken_at).total_seconds())
        events.append(event)
        memory = _apply(memory, event, seen)


def diagram() -> str:
    """Return the state diagram in the language of Mermaid."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.AWAKE.value}"]
    for source, transitions in TRANSITIONS.items():
        lines += [f"    {source.value} --> {target.value}: {event.value}" for event, target in transitions.items()]
    return "\n".join(lines)


def _current(memory: Memory, seen: Observation) -> Memory:
    """Return the memory as corrected by the Deployment and the slice."""
    if seen.recorded is not None:
        return Memory(State.PARKED if seen.recorded.parked else State.ASLEEP, seen.recorded)
    if memory.state in WITHOUT_POD:  # the write failed, or the Deployment was scaled up by hand
        return Memory()
    if memory.state is not State.DRAINING:
        return memory
    if not seen.slice_exists:
        return replace(memory, drained_at=None)
    return memory if memory.drained_at is not None else replace(memory, drained_at=seen.clock + SETTLE_S)


def _event(memory: Memory, seen: Observation, *, served: bool) -> Event | Check | None:
    """Return the event of a user in this state, the check that is needed to tell, or None if nothing happens.

    Args:
        served: whether `POD_SERVES` has happened in this step, after which the activators are on standby.
    """
    match memory.state:
        case State.AWAKE:
            if seen.slice_exists and not served:
                return Event.SLICE_FOUND
            return Event.POD_MISSING if seen.pod_missing and seen.activators_known else None
        case State.IDLE_CANDIDATE:
            return Event.BLOCKED if _is_blocked(seen) else _usage(seen)
        case State.DRAINING:
            if _is_blocked(seen):
                return Event.BLOCKED
            if memory.asleep is None or memory.asleep.wake_seen != seen.wake_requested:
                return Event.IN_USE
            if memory.drained_at is None or memory.drained_at > seen.clock:
                return None
            return _usage(seen)
        case State.ASLEEP | State.PARKED:
            if seen.blocker is not None:
                return Event.BLOCKED
            if memory.asleep is None or memory.asleep.wake_seen != seen.wake_requested:
                return Event.WAKE_REQUESTED
            return Event.CLIENTS_LEFT if memory.state is State.PARKED and seen.parked_clients == 0 else None
        case State.WAKING:
            if seen.recorded is not None:  # the Deployment must be scaled up first
                return None
            if not seen.pod_available:
                return None
            if not seen.slice_exists:
                return Event.SLICE_MISSING
            if seen.pod_serves is None:
                return Check.ENDPOINTS
            return Event.POD_SERVES if seen.pod_serves else None


def _is_blocked(seen: Observation) -> bool:
    return seen.blocker is not None or not seen.activators_known


def _usage(seen: Observation) -> Event | Check:
    match seen.usage:
        case Usage.IDLE:
            return Event.IDLE_CONFIRMED
        case Usage.QUIET:
            return Event.QUIET_CONFIRMED
        case Usage.IN_USE:
            return Event.IN_USE
        case Usage.UNKNOWN:
            return Event.USAGE_UNKNOWN
        case None:
            return Check.USAGE


def _apply(memory: Memory, event: Event, seen: Observation) -> Memory:
    """Return the memory after an event."""
    state = TRANSITIONS[memory.state][event]
    match state:
        case State.DRAINING:
            record = Asleep(rfc3339(seen.now, "microseconds"), seen.wake_requested)
            return replace(memory, state=state, asleep=record, drained_at=None)
        case State.ASLEEP | State.PARKED:
            slept = memory.asleep
            return Memory(state, slept and replace(slept, parked=state is State.PARKED))
        case State.WAKING if event is Event.WAKE_REQUESTED:
            return Memory(state, woken_at=parse_timestamp(seen.wake_requested, seen.now, to_the_second=False))
        case State.WAKING:
            return Memory(state, woken_at=memory.woken_at)
        case _:
            woken_at = None if event in (Event.POD_SERVES, Event.SLICE_MISSING) else memory.woken_at
            return Memory(state, woken_at=woken_at)


def _condition(memory: Memory, seen: Observation, began: Memory) -> ConditionResult:
    if memory.state is State.ASLEEP:
        return ConditionResult(True, "Idle", "no client is connected; the next connection wakes the user")
    if memory.state is State.PARKED:
        return ConditionResult(True, "Parked", "activators keep the connections; activity starts the pod")
    if seen.blocker is not None:
        return seen.blocker
    if seen.usage is Usage.UNKNOWN:
        return ConditionResult(False, "DatabaseUnavailable", f"could not read client presence: {seen.usage_error}")
    # The reason stays until the next sleep, also while the cached status does not have it yet.
    if seen.was_woken or began.woken_at is not None or memory.woken_at is not None:
        return WOKEN
    return seen.awake


def _recheck_s(memory: Memory, seen: Observation) -> float | None:
    if memory.state is State.DRAINING:
        return SETTLE_S if memory.drained_at is None else memory.drained_at - seen.clock
    if memory.state is State.WAKING and seen.pod_serves is False:
        return ENDPOINT_S
    return DATABASE_S if seen.usage is Usage.UNKNOWN else None
