"""Blocks are restored where that was measured to be faster than computing them."""

from __future__ import annotations

import pytest

from support.engine_builders import Clock
from terrace_runtime.kv.policy import PROBE_S, Rate, RestorePolicy

_MIB = 1 << 20


class _Disk:
    rate = 0.0

    def __call__(self) -> float:
        return self.rate


def _policy() -> tuple[RestorePolicy, _Disk, Clock]:
    disk, clock = _Disk(), Clock()
    return RestorePolicy(clock, disk), disk, clock


def test_what_was_not_measured_is_tried() -> None:
    policy, disk, _ = _policy()
    assert policy.worth_restoring(32, 0, _MIB)
    assert policy.worth_restoring(0, 32, _MIB)
    policy.observe_prefill(1000, 1)
    assert policy.worth_restoring(32, 32, _MIB)
    disk.rate = 1.0
    assert not policy.worth_restoring(0, 32, _MIB)


def test_nothing_is_not_worth_restoring() -> None:
    assert not _policy()[0].worth_restoring(0, 0, _MIB)


def test_a_disk_slower_than_prefill_is_left_alone_and_its_host_blocks_are_not() -> None:
    policy, disk, _ = _policy()
    policy.observe_prefill(1000, 1)
    policy.observe_restore(4000 * _MIB, 1)
    disk.rate = 500 * _MIB
    assert not policy.worth_restoring(100, 900, _MIB)
    assert policy.worth_restoring(100, 0, _MIB)
    assert policy.worth_restoring(900, 100, _MIB), "the mean is faster than computing"
    disk.rate = 2000 * _MIB
    assert policy.worth_restoring(100, 900, _MIB)


def test_restoring_counts_the_way_from_host_memory_too() -> None:
    policy, disk, _ = _policy()
    policy.observe_prefill(1000, 1)
    policy.observe_restore(1500 * _MIB, 1)
    disk.rate = 1500 * _MIB
    assert not policy.worth_restoring(0, 100, _MIB), "1/1500 twice is more than 1/1000"
    assert policy.worth_restoring(100, 0, _MIB)


def test_a_slow_disk_is_probed_from_time_to_time() -> None:
    policy, disk, clock = _policy()
    policy.observe_prefill(1000, 1)
    disk.rate = _MIB
    answers = []
    for second in range(int(4 * PROBE_S)):
        clock.now = float(second)
        answers.append(policy.worth_restoring(0, 100, _MIB))
        if answers[-1]:
            disk.rate += 1  # the probe was read, and it was as slow as ever
    assert answers.count(True) == 3


def test_a_probe_lasts_until_something_was_measured() -> None:
    policy, disk, clock = _policy()
    policy.observe_prefill(1000, 1)
    disk.rate = _MIB
    assert not policy.worth_restoring(0, 100, _MIB)
    clock.now = PROBE_S
    assert [policy.worth_restoring(0, 100, _MIB) for _ in range(3)] == [True] * 3
    disk.rate = 2 * _MIB
    assert not policy.worth_restoring(0, 100, _MIB)
    disk.rate = 5000 * _MIB
    assert policy.worth_restoring(0, 100, _MIB), "it recovered"


def test_a_rate_follows_what_is_measured_up_and_down_alike() -> None:
    rate = Rate()
    assert rate.per_second == 0
    for start, end in ((1e9, 1e7), (1e7, 1e9)):
        for _ in range(30):
            rate.add(start, 1)
        assert rate.per_second == pytest.approx(start, rel=0.01)
        for _ in range(8):
            rate.add(end, 1)
        assert rate.per_second == pytest.approx(end, rel=0.4)
    rate.add(0, 1)
    rate.add(1, 0)
    assert rate.per_second == pytest.approx(1e9, rel=0.4)


def test_the_rates_can_be_shown() -> None:
    policy = _policy()[0]
    policy.observe_prefill(50, 2)
    policy.observe_restore(300, 2)
    assert policy.prefill_tokens_per_second == pytest.approx(25)
    assert policy.restore_bytes_per_second == pytest.approx(150)
