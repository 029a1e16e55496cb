"""The state machine of sleep: single steps, its table, and random walks with clients, a relay and activators."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from userrealtime_operator.kube.timestamps import rfc3339
from userrealtime_operator.model.conditions import ConditionResult
from userrealtime_operator.model.presence import Presence
from userrealtime_operator.sleep.machine import (
    DATABASE_S,
    ENDPOINT_S,
    SETTLE_S,
    TRANSITIONS,
    WITH_SLICE,
    Check,
    Event,
    Memory,
    Observation,
    State,
    Step,
    Usage,
    diagram,
    mark_idle,
    next_step,
)
from userrealtime_operator.sleep.policy import Sleep, decide
from userrealtime_operator.sleep.state import Asleep

START = datetime(2026, 1, 1, tzinfo=UTC)
AWAKE = ConditionResult(False, "Awake", "awake")
BLOCKED = ConditionResult(False, "NeverSleeps", "blocked")
RECORD = Asleep("2026-01-01T00:00:00.000000Z", "")
CANDIDATE = Memory(State.IDLE_CANDIDATE)
DRAINING = Memory(State.DRAINING, RECORD)
WAKING = Memory(State.WAKING)


def seen(**changes: Any) -> Observation:
    """Return the observation of a user that is awake, with changes."""
    known = Observation(START, 100.0, None, "", False, True, None, True, AWAKE)
    return replace(known, **changes)


def test_a_user_that_is_awake_stays_awake() -> None:
    step = next_step(Memory(), seen())
    assert (step.memory, step.condition, step.slice, step.asleep) == (Memory(), AWAKE, False, None)
    assert (step.check, step.recheck_s, step.events) == (None, None, ())


def test_a_candidate_is_checked_and_then_drained() -> None:
    asked = next_step(CANDIDATE, seen())
    assert (asked.check, asked.memory) == (Check.USAGE, CANDIDATE)
    step = next_step(asked.memory, seen(usage=Usage.IDLE))
    assert (step.memory.state, step.slice, step.asleep) == (State.DRAINING, True, None)
    assert step.recheck_s == SETTLE_S
    assert step.condition == AWAKE


@pytest.mark.parametrize("usage", [Usage.IN_USE, Usage.UNKNOWN])
def test_a_candidate_that_is_not_idle_is_awake(usage: Usage) -> None:
    step = next_step(CANDIDATE, seen(usage=usage))
    assert (step.memory, step.slice) == (Memory(), False)
    assert step.recheck_s == (DATABASE_S if usage is Usage.UNKNOWN else None)


@pytest.mark.parametrize("changes", [{"blocker": BLOCKED}, {"activators_known": False}])
def test_a_blocked_candidate_is_not_checked(changes: dict[str, Any]) -> None:
    step = next_step(CANDIDATE, seen(**changes))
    assert (step.memory, step.check) == (Memory(), None)
    assert step.condition == changes.get("blocker", AWAKE)


def test_the_drain_begins_when_the_slice_is_observed() -> None:
    waiting = next_step(DRAINING, seen(clock=100.0))
    assert (waiting.memory.drained_at, waiting.recheck_s) == (None, SETTLE_S)
    begun = next_step(waiting.memory, seen(clock=110.0, slice_exists=True))
    assert (begun.memory.drained_at, begun.recheck_s) == (110.0 + SETTLE_S, SETTLE_S)
    later = next_step(begun.memory, seen(clock=111.0, slice_exists=True))
    assert later.recheck_s == SETTLE_S - 1
    gone = next_step(later.memory, seen(clock=120.0))
    assert gone.memory.drained_at is None, "without the slice, it begins again"


def drained(**changes: Any) -> Step:
    memory = replace(DRAINING, drained_at=100.0)
    return next_step(memory, seen(slice_exists=True, **changes))


def test_after_the_drain_the_check_is_repeated() -> None:
    assert drained().check is Check.USAGE
    step = drained(usage=Usage.IDLE)
    assert (step.memory.state, step.asleep, step.slice) == (State.ASLEEP, RECORD, True)
    assert (step.condition.true, step.condition.reason) == (True, "Idle")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"usage": Usage.IN_USE}, id="a client"),
        pytest.param({"usage": Usage.UNKNOWN}, id="no database"),
        pytest.param({"blocker": BLOCKED}, id="blocked"),
        pytest.param({"activators_known": False}, id="no activators"),
        pytest.param({"wake_requested": "now"}, id="a wake request"),
    ],
)
def test_a_drain_that_is_aborted_keeps_the_slice_until_the_pod_serves(changes: dict[str, Any]) -> None:
    assert drained(**changes).check is Check.ENDPOINTS
    serving = drained(pod_serves=True, **changes)
    assert (serving.memory, serving.slice, serving.asleep) == (Memory(), False, None)
    starting = drained(pod_serves=False, **changes)
    assert (starting.memory.state, starting.slice, starting.recheck_s) == (State.WAKING, True, ENDPOINT_S)


def test_a_wake_request_ends_a_drain_before_its_time() -> None:
    step = next_step(replace(DRAINING, drained_at=900.0), seen(wake_requested="now"))
    assert step.events == (Event.IN_USE, Event.SLICE_MISSING)


@pytest.mark.parametrize("memory", [Memory(), CANDIDATE, DRAINING, WAKING])
def test_the_record_of_the_deployment_counts_and_not_the_memory(memory: Memory) -> None:
    step = next_step(memory, seen(recorded=RECORD, slice_exists=True, pod_available=False))
    assert (step.memory, step.asleep, step.slice, step.events) == (Memory(State.ASLEEP, RECORD), RECORD, True, ())


def test_a_wake_is_requested_by_any_other_value() -> None:
    request = rfc3339(START - timedelta(seconds=1), "microseconds")
    step = next_step(Memory(), seen(recorded=RECORD, wake_requested=request, pod_available=False))
    assert (step.memory.state, step.asleep, step.slice) == (State.WAKING, None, True)
    assert step.condition.reason == "WakeRequested"
    assert step.memory.woken_at == START - timedelta(seconds=1)


def test_a_blocker_wakes_a_sleeping_user() -> None:
    step = next_step(Memory(), seen(recorded=RECORD, blocker=BLOCKED, wake_requested="now"))
    assert (step.memory, step.asleep, step.condition) == (WAKING, None, BLOCKED)


def test_unknown_activators_do_not_wake_a_sleeping_user() -> None:
    assert next_step(Memory(), seen(recorded=RECORD, activators_known=False)).asleep == RECORD


def test_the_wake_ends_when_the_pod_serves() -> None:
    memory = replace(WAKING, woken_at=START - timedelta(seconds=1.5))
    starting = next_step(memory, seen(slice_exists=True, pod_available=False))
    assert (starting.memory, starting.slice, starting.check, starting.recheck_s) == (memory, True, None, None)
    assert next_step(memory, seen(slice_exists=True)).check is Check.ENDPOINTS
    step = next_step(memory, seen(slice_exists=True, pod_serves=True))
    assert (step.memory, step.slice, step.wake_s) == (Memory(), False, 1.5)
    assert step.condition.reason == "WakeRequested"
    assert next_step(step.memory, seen(was_woken=True)).condition.reason == "WakeRequested"


PARKED_RECORD = replace(RECORD, parked=True)


def test_quiet_clients_are_parked_after_the_drain() -> None:
    begun = next_step(CANDIDATE, seen(usage=Usage.QUIET))
    assert (begun.memory.state, begun.slice, begun.asleep) == (State.DRAINING, True, None)
    step = drained(usage=Usage.QUIET)
    assert (step.memory.state, step.asleep, step.slice) == (State.PARKED, PARKED_RECORD, True)
    assert (step.condition.true, step.condition.reason) == (True, "Parked")


@pytest.mark.parametrize("clients", [None, 1])
def test_a_parked_user_stays_parked_while_clients_may_be_connected(clients: int | None) -> None:
    step = next_step(Memory(), seen(recorded=PARKED_RECORD, pod_available=False, parked_clients=clients))
    assert (step.memory.state, step.asleep, step.events) == (State.PARKED, PARKED_RECORD, ())


def test_a_parked_user_without_clients_is_asleep() -> None:
    step = next_step(Memory(), seen(recorded=PARKED_RECORD, pod_available=False, parked_clients=0))
    assert (step.memory.state, step.asleep, step.slice) == (State.ASLEEP, RECORD, True)


@pytest.mark.parametrize("changes", [{"blocker": BLOCKED}, {"wake_requested": "2026-01-01T00:00:00.000000Z"}])
def test_a_parked_user_is_woken_as_one_that_sleeps(changes: dict[str, Any]) -> None:
    step = next_step(Memory(), seen(recorded=PARKED_RECORD, pod_available=False, parked_clients=1, **changes))
    assert (step.memory.state, step.asleep, step.slice) == (State.WAKING, None, True)


def test_connections_to_a_user_without_a_pod_reach_the_activators() -> None:
    lost = next_step(Memory(), seen(pod_available=False, pod_missing=True))
    assert (lost.memory, lost.slice, lost.asleep, lost.events) == (WAKING, True, None, (Event.POD_MISSING,))
    assert lost.condition == AWAKE
    starting = next_step(lost.memory, seen(slice_exists=True, pod_available=False, pod_missing=True))
    assert (starting.memory, starting.slice, starting.events) == (WAKING, True, ())
    served = next_step(starting.memory, seen(slice_exists=True, pod_serves=True))
    assert (served.memory, served.slice, served.wake_s) == (Memory(), False, None)


def test_a_pod_of_an_earlier_version_serves() -> None:
    assert next_step(Memory(), seen(pod_available=False)).memory == Memory()


def test_a_user_whose_pod_is_back_before_the_slice_was_written_is_awake() -> None:
    step = next_step(WAKING, seen())
    assert (step.memory, step.slice, step.events) == (Memory(), False, (Event.SLICE_MISSING,))


def test_without_an_activator_nothing_follows_from_a_missing_pod() -> None:
    step = next_step(Memory(), seen(pod_available=False, pod_missing=True, activators_known=False))
    assert (step.memory, step.slice) == (Memory(), False)


def test_a_slice_of_an_earlier_operator_is_removed() -> None:
    assert next_step(Memory(), seen(slice_exists=True)).check is Check.ENDPOINTS
    step = next_step(Memory(), seen(slice_exists=True, pod_serves=True))
    assert (step.slice, step.events, step.wake_s) == (False, (Event.SLICE_FOUND, Event.POD_SERVES), None)


def test_a_wake_that_ends_while_the_user_is_checked_is_measured() -> None:
    memory = replace(CANDIDATE, woken_at=START - timedelta(seconds=1.5))
    step = next_step(memory, seen(slice_exists=True, usage=Usage.IN_USE, pod_serves=True))
    assert (step.memory, step.wake_s) == (Memory(), 1.5)


def test_a_sleep_that_was_not_written_is_not_a_sleep() -> None:
    step = next_step(Memory(State.ASLEEP, RECORD), seen(slice_exists=True, pod_serves=True))
    assert (step.memory, step.asleep) == (Memory(), None)


@pytest.mark.parametrize("state", State)
def test_only_users_with_a_pod_become_candidates(state: State) -> None:
    marked = mark_idle(Memory(state))
    assert (marked.state is State.IDLE_CANDIDATE) is (state in (State.AWAKE, State.WAKING, State.IDLE_CANDIDATE))
    assert mark_idle(replace(WAKING, woken_at=START)).woken_at == START


def test_every_state_can_be_entered_and_left() -> None:
    assert set(TRANSITIONS) == set(State)
    entered = {target for transitions in TRANSITIONS.values() for target in transitions.values()}
    assert entered == set(State)
    assert all(source is not target for source in State for target in TRANSITIONS[source].values())


def test_the_diagram_has_every_transition() -> None:
    lines = diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> Awake"]
    edges = [
        f"    {source.value} --> {target.value}: {event.value}"
        for source, transitions in TRANSITIONS.items()
        for event, target in transitions.items()
    ]
    assert lines[2:] == edges
    assert not any(mark in event.value for event in Event for mark in ":;#"), "these have a meaning in Mermaid"


class Walk:
    """Alice with her relay, her clients, the activators, the database and the operator, which act in any order.

    A relay reports its clients up to a second late. Clients come to the pod if there is one, and to an activator
    otherwise, which requests a wake.
    """

    AFTER_S = 3.0

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 (no secret)
        self.memory = Memory()
        self.clock = 1000.0
        self.recorded: Asleep | None = None
        self.slice = False
        self.activators = True
        self.blocked = False
        self.database = True
        self.wake = ""
        self.came: list[float] = []
        """The time at which each connected client has connected."""
        self.waits = False
        """Whether a client waits for the pod."""
        self.unreported: float | None = None
        """The time of the relay's next report; None if the last one is up to date."""
        self.changed_at = 0.0
        """The time at which the number of clients changed from or to zero."""
        self.row: Presence | None = None
        self.pod = True
        self.pod_serves = True
        self.unseen = False
        """Whether the pod was lost after the last step of the operator."""
        self.slept = 0
        self.taken: Counter[tuple[State, Event]] = Counter()

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.clock)

    def act(self) -> None:
        acts: dict[Callable[[], None], int] = {
            self.pause: 50,
            self.reconcile: 60,
            self.connect: 4,
            self.disconnect: 8,
            self.poll: 20,
            self.start_pod: 20,
            self.restart: 1,
            self.change_activators: 2,
            self.block: 1,
            self.fail_database: 2,
            self.delete_slice: 1,
            self.lose_pod: 1,
        }
        self.random.choices(list(acts), list(acts.values()))[0]()

    def pause(self) -> None:
        for _ in range(self.random.choice([1, 4, 8, 40])):
            self.clock += 0.25
            if self.unreported is not None and self.clock >= self.unreported:
                self.unreported = None
            if self.pod and self.unreported is None:
                self.row = Presence("pod", len(self.came), self.changed_at, self.clock)
            self.pod_serves = self.pod_serves or (self.pod and self.random.random() < 0.5)

    def _change(self, clients: list[float]) -> None:
        if bool(clients) != bool(self.came):
            self.changed_at = self.clock
        self.came = clients
        self.unreported = self.unreported or self.clock + self.random.uniform(0, 1)

    def connect(self) -> None:
        if self.pod:
            self._change([*self.came, self.clock])
        else:
            self.waits = True
            self.wake = rfc3339(self.now, "microseconds")

    def disconnect(self) -> None:
        if self.came:
            self._change([])

    def start_pod(self) -> None:
        if not self.pod and self.recorded is None:
            self.pod = True
            self.changed_at = self.clock
            self._change([self.clock] if self.waits else [])
            self.waits = False

    def restart(self) -> None:
        self.memory = Memory()

    def change_activators(self) -> None:
        self.activators = self.random.random() < 0.7

    def block(self) -> None:
        self.blocked = self.random.random() < 0.3

    def fail_database(self) -> None:
        self.database = self.random.random() >= 0.3

    def delete_slice(self) -> None:
        """Delete the slice as another client of the API server, while there is a pod."""
        if self.pod:
            self.slice = False

    def lose_pod(self) -> None:
        """End the pod as a crash does, while the operator does not act."""
        if self.pod:
            self.waits, self.came, self.unreported, self.pod, self.pod_serves = bool(self.came), [], None, False, False
            self.row, self.unseen = None, True
            if self.waits:  # they reconnect through an activator
                self.wake = rfc3339(self.now, "microseconds")

    def _is_idle(self, pods: list[str]) -> bool:
        since = (datetime.fromisoformat(self.wake) - START).total_seconds() if self.wake else 0.0
        rows = [self.row] if self.row else []
        return isinstance(decide(pods, rows, self.AFTER_S, since, self.clock, warm=False), Sleep)

    def poll(self) -> None:
        """The operator's poll of presence."""
        reported = ["pod"] if self.row else []
        polled = self.database and self.recorded is None and self.memory.state is not State.DRAINING
        if polled and self._is_idle(reported):
            self.memory = mark_idle(self.memory)

    def _observe(self) -> Observation:
        return Observation(
            now=self.now,
            clock=self.clock,
            recorded=self.recorded,
            wake_requested=self.wake,
            slice_exists=self.slice,
            pod_available=self.pod,
            pod_missing=not self.pod,
            blocker=BLOCKED if self.blocked else None,
            activators_known=self.activators,
            awake=AWAKE,
        )

    def reconcile(self) -> None:
        known = self._observe()
        before = self.memory if self.recorded is None else Memory(State.ASLEEP, self.recorded)
        step = next_step(self.memory, known)
        while step.check is not None:
            if step.check is Check.ENDPOINTS:
                known = replace(known, pod_serves=self.pod and self.pod_serves)
            elif not self.database:
                known = replace(known, usage=Usage.UNKNOWN)
            else:
                idle = self._is_idle(["pod"] if self.pod else [])
                known = replace(known, usage=Usage.IDLE if idle else Usage.IN_USE)
            step = next_step(step.memory, known)
        state = before.state
        for event in step.events:
            self.taken[state, event] += 1
            state = TRANSITIONS[state][event]
        assert state is step.memory.state
        assert step.slice is (state in WITH_SLICE)
        self._execute(step)

    def _execute(self, step: Step) -> None:
        falls_asleep = self.recorded is None and step.asleep is not None
        if falls_asleep:
            assert self.pod, "only a pod that exists is removed"
            assert self.slice, "new connections could reach an activator during the drain"
            assert all(self.clock - came <= 1 for came in self.came), "no client was connected that could be detected"
            self.slept += 1
        self.memory = step.memory
        self.recorded = step.asleep
        if not step.slice:
            assert self.pod or not self.waits or not self.activators
            self.slice = False
        elif self.activators:
            self.slice = True
        if falls_asleep:
            if self.came:  # they reconnect through an activator
                self.wake = rfc3339(self.now, "microseconds")
            self.waits, self.came, self.unreported, self.pod, self.pod_serves = bool(self.came), [], None, False, False
            self.row = None
        elif self.waits:
            assert self.recorded is None, "a waiting client wakes the user"
        self.unseen = self.unseen and not self.activators and not self.pod
        if not self.pod and not self.unseen:
            assert self.slice, "connections reach an activator while there is no pod"


def walk(seed: int) -> Walk:
    """After a thousand random actions without further clients, the user sleeps."""
    walk = Walk(seed)
    for _ in range(1000):
        walk.act()
    walk.database, walk.activators, walk.blocked = True, True, False
    for _ in range(40):
        walk.disconnect()
        walk.pause()
        walk.poll()
        walk.reconcile()
        walk.start_pod()
    return walk


@pytest.mark.parametrize("seed", range(50))
def test_no_detectable_client_is_cut_and_none_is_left_waiting(seed: int) -> None:
    done = walk(seed)
    assert done.slept
    assert done.recorded is not None, "a user without clients sleeps in the end"


def test_random_walks_take_every_transition() -> None:
    taken: Counter[tuple[State, Event]] = Counter()
    for seed in range(50):
        taken += walk(seed).taken
    expected = {
        (state, event)
        for state, transitions in TRANSITIONS.items()
        for event in transitions
        if event is not Event.SEEMS_IDLE  # taken by mark_idle
        # The walk has no quiet clients.
        if event is not Event.QUIET_CONFIRMED and state is not State.PARKED
    }
    assert set(taken) == expected
