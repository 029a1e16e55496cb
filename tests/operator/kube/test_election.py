"""When a candidate leads: on a fake clock and with a fake Lease. Only the checks of the Lease take real time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from testing.patience import PATIENCE_S
from userrealtime_operator.kube.client import Api, ApiError
from userrealtime_operator.kube.election import MARGIN_S, Election, NoLeader, wait_for_leader
from userrealtime_operator.kube.lease import Settings, holder
from userrealtime_operator.kube.types import Object

SETTINGS = Settings(duration=12.0, renew_deadline=8.0, retry=0.01)


class FakeLease(Api):
    """An API server with one Lease."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.failure: ApiError | None = None
        self.conflicts = 0
        self.reads = 0
        self.writes = 0

    async def get_lease(self, namespace: str, name: str) -> Object | None:
        assert (namespace, name) == ("platform", "operator")
        self.reads += 1
        if self.failure:
            raise self.failure
        return self.lease

    async def put_lease(self, namespace: str, name: str, previous: Object | None, spec: Object) -> Object:
        if self.conflicts:
            self.conflicts -= 1
            raise ApiError(409, "the object has been modified")
        self.writes += 1
        return self.hold(spec)

    def hold(self, spec: Object) -> Object:
        version = 1 if self.lease is None else int(self.lease["metadata"]["resourceVersion"]) + 1
        self.lease = {"metadata": {"resourceVersion": str(version)}, "spec": spec}
        return self.lease


class Candidate:
    """A candidate whose clock stands still unless a test advances it."""

    def __init__(self, api: FakeLease) -> None:
        self.time = 100.0
        self.api = api
        self.works = False
        self.terms = 0
        self.failure: Exception | None = None
        self.election = Election(api, "platform", "operator", "me", SETTINGS, clock=lambda: self.time)

    async def lead(self) -> None:
        self.terms += 1
        self.works = True
        try:
            if self.failure:
                raise self.failure
            await asyncio.Event().wait()
        finally:
            self.works = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.election.run(self.lead))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def checks(self, number: int = 3) -> None:
        """Wait for some checks of the Lease."""
        start = self.api.reads
        await until(lambda: self.api.reads >= start + number)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def api() -> FakeLease:
    return FakeLease()


@pytest.fixture
def candidate(api: FakeLease) -> Candidate:
    return Candidate(api)


async def test_a_free_lease_is_acquired_and_renewed(api: FakeLease, candidate: Candidate) -> None:
    assert candidate.election.seconds_to_write() == 0
    async with candidate.running():
        await until(lambda: candidate.works)
        assert candidate.election.leads
        assert holder(api.lease) == "me"
        await until(lambda: api.writes >= 3)
        assert candidate.terms == 1


async def test_a_write_must_end_before_the_lease_does(api: FakeLease, candidate: Candidate) -> None:
    async with candidate.running():
        await until(lambda: candidate.works)
        api.failure = ApiError(0, "no answer")
        await candidate.checks()
        assert candidate.election.seconds_to_write() == SETTINGS.duration - MARGIN_S
        candidate.time += 5
        assert candidate.election.seconds_to_write() == SETTINGS.duration - MARGIN_S - 5
        candidate.time += 3
        assert candidate.election.seconds_to_write() == 0


async def test_the_lease_of_another_is_taken_only_after_it_has_not_changed_for_its_duration(
    api: FakeLease, candidate: Candidate
) -> None:
    api.hold({"holderIdentity": "other", "leaseDurationSeconds": 12})
    async with candidate.running():
        await candidate.checks()
        candidate.time += 11
        await candidate.checks()
        api.hold({"holderIdentity": "other", "leaseDurationSeconds": 12})
        await candidate.checks()
        candidate.time += 11
        await candidate.checks()
        assert (api.writes, candidate.terms) == (0, 0)
        candidate.time += 1
        await until(lambda: candidate.works)
        assert holder(api.lease) == "me"


async def test_the_work_stops_when_the_lease_cannot_be_renewed_in_time(api: FakeLease, candidate: Candidate) -> None:
    async with candidate.running():
        await until(lambda: candidate.works)
        api.failure = ApiError(0, "no answer")
        candidate.time += 7
        await candidate.checks()
        assert candidate.works
        candidate.time += 1
        await until(lambda: not candidate.works)
        assert not candidate.election.leads
        assert candidate.election.seconds_to_write() == 0
        api.failure = None
        await until(lambda: candidate.works)
        assert candidate.terms == 2


async def test_the_work_stops_when_another_holds_the_lease(api: FakeLease, candidate: Candidate) -> None:
    async with candidate.running():
        await until(lambda: candidate.works)
        api.hold({"holderIdentity": "other", "leaseDurationSeconds": 12})
        await until(lambda: not candidate.works)
        await candidate.checks()
        assert holder(api.lease) == "other"


async def test_a_conflict_is_another_candidate(api: FakeLease, candidate: Candidate) -> None:
    api.conflicts = 2
    async with candidate.running():
        await until(lambda: api.conflicts == 1)
        assert not candidate.works
        await until(lambda: candidate.works)


async def test_the_lease_is_released_after_the_work_has_stopped(api: FakeLease, candidate: Candidate) -> None:
    async with candidate.running():
        await until(lambda: candidate.works)
    assert not candidate.works
    assert holder(api.lease) == ""


async def test_a_lease_of_another_is_not_released(api: FakeLease, candidate: Candidate) -> None:
    api.hold({"holderIdentity": "other", "leaseDurationSeconds": 12})
    async with candidate.running():
        await candidate.checks()
    assert holder(api.lease) == "other"
    assert api.writes == 0


async def test_a_failure_of_the_work_ends_the_election_and_releases_the_lease(
    api: FakeLease, candidate: Candidate
) -> None:
    candidate.failure = ValueError("broken")
    async with candidate.running() as task:
        with pytest.raises(ValueError, match="broken"):
            await asyncio.wait_for(task, PATIENCE_S)
    assert holder(api.lease) == ""


async def test_a_leader_that_renews_its_lease_is_found(api: FakeLease, candidate: Candidate) -> None:
    async with candidate.running():
        assert await wait_for_leader(api, "platform", "operator", PATIENCE_S, retry_s=0.001) == "me"


def dead_leader(api: FakeLease) -> None:
    api.hold({"holderIdentity": "dead", "renewTime": "2026-12-01T00:00:00Z"})


def failing(api: FakeLease) -> None:
    api.failure = ApiError(403, "forbidden")


@pytest.mark.parametrize(
    ("situation", "reason"),
    [
        (lambda _: None, "the Lease platform/operator does not exist"),
        (lambda api: api.hold({"holderIdentity": ""}), "no operator holds the Lease platform/operator"),
        (dead_leader, "dead holds the Lease platform/operator and does not renew it"),
        (failing, "the Lease platform/operator cannot be read: forbidden"),
    ],
    ids=["absent", "free", "dead", "forbidden"],
)
async def test_without_a_living_leader_the_reason_is_reported(
    api: FakeLease, situation: Callable[[FakeLease], object], reason: str
) -> None:
    situation(api)
    with pytest.raises(NoLeader, match=reason):
        await wait_for_leader(api, "platform", "operator", 0.5, retry_s=0.001)


async def test_a_new_leader_has_to_renew_the_lease(api: FakeLease) -> None:
    """Two holders in a row are two versions of the Lease, and no renewal."""
    holders = iter(["first", "second"])

    async def get_lease(_namespace: str, _name: str) -> Object | None:
        name = next(holders, "second")
        return {"metadata": {}, "spec": {"holderIdentity": name, "renewTime": f"time of {name}"}}

    api.get_lease = get_lease  # type: ignore[method-assign,assignment]
    with pytest.raises(NoLeader, match="second holds the Lease"):
        await wait_for_leader(api, "platform", "operator", 0.5, retry_s=0.001)
