"""What rounds come to: medians of ratios, targets that may be lower or upper bounds."""

from __future__ import annotations

import pytest

from bench.verdict import Metric, absolute, lost, percentile, verdict

SPEED = Metric("speed", "tokens/s", 1.0)
WAIT = Metric("wait", "ms", 0.5, less_is_better=True)


def test_the_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # A job that slows both sides of the second round does not move the ratio.
    sides = [(100, 100), (11, 10), (120, 100)]
    pairs = [({"speed": float(ours)}, {"speed": float(peer)}) for ours, peer in sides]
    line = verdict(SPEED, pairs)
    assert line["ratio"] == 1.1
    assert (line["ours"], line["peer"]) == (100.0, 100.0)
    assert line["ratio_range"] == [1.0, 1.2]
    assert line["rounds"] == 3
    assert line["ok"] is True


@pytest.mark.parametrize(
    ("metric", "ours", "is_ok"),
    [(SPEED, 100.0, True), (SPEED, 99.9, False), (WAIT, 50.0, True), (WAIT, 50.1, False)],
)
def test_a_case_is_ok_from_its_target_on(metric: Metric, ours: float, *, is_ok: bool) -> None:
    assert verdict(metric, [({metric.id: ours}, {metric.id: 100.0})])["ok"] is is_ok


def test_what_else_was_measured_stands_beside_the_verdict() -> None:
    pair = ({"speed": 2.0, "cached": 5.0}, {"speed": 1.0, "cached": 0.0})
    line = verdict(SPEED, [pair], peer_flags="np")
    assert (line["ours_also"], line["peer_also"]) == ({"cached": 5.0}, {"cached": 0.0})
    assert line["peer_flags"] == "np"


def test_without_a_peer_ours_is_held_to_the_target() -> None:
    line = absolute(WAIT, [{"wait": 0.4}, {"wait": 0.6}, {"wait": 0.5}])
    assert (line["ours"], line["peer"], line["ratio"], line["ok"]) == (0.5, None, None, True)


def test_nothing_measured_is_never_ok() -> None:
    line = lost(WAIT, "no server")
    assert (line["ours"], line["ok"], line["why"]) == (None, False, "no server")


def test_each_metric_has_its_own_best() -> None:
    found = {"a": {"speed": 2.0, "wait": 9.0}, "b": {"speed": 1.0, "wait": 3.0}}
    assert SPEED.best(found) == "a"
    assert WAIT.best(found) == "b"


@pytest.mark.parametrize(("percent", "value"), [(0, 1.0), (50, 3.0), (95, 4.0), (99, 4.0)])
def test_a_percentile_is_one_of_the_values(percent: int, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == value
