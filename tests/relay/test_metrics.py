from __future__ import annotations

from userrealtime_relay.metrics import Metrics


def test_two_sets_of_metrics_do_not_share_anything() -> None:
    first, second = Metrics(), Metrics()
    first.accepted.inc()
    first.starts.labels("head").inc()
    assert b"userrealtime_relay_accepted_total 1.0\n" in first.expose()
    assert b"userrealtime_relay_accepted_total 0.0\n" in second.expose()


def test_every_line_has_the_name_of_the_relay() -> None:
    metrics = Metrics()
    metrics.closes.labels("1012").inc()
    metrics.latency.observe(0.002)
    lines = metrics.expose().decode().splitlines()
    assert [line for line in lines if not line.startswith(("#", "userrealtime_relay_"))] == []
    assert 'userrealtime_relay_closes_total{code="1012"} 1.0' in lines
    assert 'userrealtime_relay_latency_seconds_bucket{le="0.0025"} 1.0' in lines
