"""The short list of end-to-end scenarios, for a second kind of cluster: `make scenarios`.

All of them are tests of `make e2e`, named here by their pytest ids. A test that is renamed has to be renamed here:
tests/cluster/test_scenarios.py compares.
"""

import subprocess
import sys

SCENARIOS = {
    "delivery": (
        "e2e/test_delivery.py::test_a_row_reaches_its_user_and_nobody_else",
        "e2e/test_delivery.py::test_a_client_that_was_away_gets_what_it_missed",
        "e2e/test_delivery.py::test_streams_and_polls_come_through_the_ingress_as_well",
    ),
    "kill": ("e2e/test_faults.py::test_the_relays_pod_is_killed_twice",),
    "sleep and wake": (
        "e2e/test_sleep.py::test_an_idle_user_sleeps_and_wakes_on_request",
        "e2e/test_wake.py::test_what_came_while_asleep_arrives_on_the_connection_that_wakes",
    ),
    "TLS to a broker": ("e2e/test_brokers.py::test_events_arrive_while_broker_and_bridges_are_killed",),
    "uninstall": (
        "e2e/test_uninstall.py::test_uninstall_removes_resources_and_keeps_logs",
        "e2e/test_uninstall.py::test_users_are_served_without_the_operator_where_the_crd_is_kept",
    ),
}


def main() -> int:
    """Run the scenarios with pytest, in the order of the list; return the exit status of pytest."""
    tests = [test for tests in SCENARIOS.values() for test in tests]
    return subprocess.run([sys.executable, "-m", "pytest", *tests]).returncode


if __name__ == "__main__":
    sys.exit(main())
