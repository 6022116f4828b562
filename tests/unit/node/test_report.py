"""The node section of /v1/runtime and of /metrics, from a recorded tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest

from support.node_trees import BOX, pod_on_v2, write
from support.runtime_http import config
from terrace_runtime.contract import KvTiers, RuntimeReport
from terrace_runtime.node.metrics import NodeMetrics
from terrace_runtime.node.report import FRESH_S, NodeWatch

if TYPE_CHECKING:
    from pathlib import Path


def test_the_report_has_limits_use_and_pressure(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal: 1048576 kB")
    report = NodeWatch(config(), pod_on_v2(tmp_path)).report
    assert report.cgroups == "v2"
    assert report.cpu.quota == 1.5
    assert report.cpu.throttled_seconds == 2.5
    assert report.memory.limit_bytes == 1 << 30
    assert report.memory.working_set_bytes == 734003200 - 104857600
    assert (report.memory.oom_kills, report.memory.limit_hits) == (2, 17)
    assert [one.resource for one in report.pressure] == ["cpu", "memory"]
    assert len(report.model_dump_json()) < 4096


def test_a_look_is_kept_for_a_second(tmp_path: Path) -> None:
    now = 100.0
    watch = NodeWatch(config(), pod_on_v2(tmp_path), lambda: now)
    assert watch.report.memory.used_bytes == 734003200
    write(tmp_path, f"sys/fs/cgroup/{BOX}/memory.current", "5")
    assert watch.report.memory.used_bytes == 734003200
    now += FRESH_S
    assert watch.report.memory.used_bytes == 5
    # A group smaller than its reclaimable pages, read a moment later, is not negative.
    assert watch.report.memory.working_set_bytes == 0


def test_what_a_loaded_replica_holds_is_judged_at_once(tmp_path: Path) -> None:
    watch = NodeWatch(config(kv=KvTiers(host_bytes=900 << 20)), pod_on_v2(tmp_path), lambda: 1.0)
    before = watch.report.warnings
    watch.loaded(200 << 20, tier_bytes=0)
    (warning,) = watch.report.warnings
    assert before == ()
    assert "the replica holds 200.0 MiB" in warning


def test_memory_that_tiers_hold_already_is_not_added_to_what_they_will(tmp_path: Path) -> None:
    watch = NodeWatch(config(kv=KvTiers(host_bytes=900 << 20)), pod_on_v2(tmp_path), lambda: 1.0)
    watch.loaded(400 << 20, tier_bytes=200 << 20)
    (warning,) = watch.report.warnings
    assert "the replica holds 200.0 MiB" in warning
    watch.loaded(300 << 20, tier_bytes=200 << 20)
    assert watch.report.warnings == ()


def test_a_plan_too_large_for_the_limit_is_refused(tmp_path: Path) -> None:
    root = pod_on_v2(tmp_path)
    assert NodeWatch(config(), root).refusal == ""
    assert "kv.host_bytes" in NodeWatch(config(kv=KvTiers(host_bytes=2 << 30)), root).refusal


def test_metrics_hold_what_the_kernel_tells_and_nothing_else(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(NodeMetrics(NodeWatch(config(), pod_on_v2(tmp_path / "v2"))))
    text = generate_latest(registry).decode()
    for line in (
        "terrace_runtime_cpu_quota 1.5",
        "terrace_runtime_cpu_throttled_seconds_total 2.5",
        "terrace_runtime_oom_kills_total 2.0",
        "terrace_runtime_memory_limit_hits_total 17.0",
        'terrace_runtime_container_memory_bytes{kind="limit"} 1.073741824e+09',
        'terrace_runtime_container_memory_bytes{kind="working_set"} 6.291456e+08',
        'terrace_runtime_pressure_ratio{resource="cpu",tasks="some"} 0.125',
        'terrace_runtime_pressure_seconds_total{resource="memory",tasks="full"} 0.125',
    ):
        assert f"{line}\n" in text
    bare = CollectorRegistry()
    bare.register(NodeMetrics(NodeWatch(config(), tmp_path / "nothing")))
    told = generate_latest(bare).decode()
    assert "terrace_runtime_cpus " in told
    assert "oom_kills" not in told
    assert "container_memory_bytes{" not in told


def test_an_older_report_without_the_section_still_parses() -> None:
    values = {"build": "b", "model": "m", "model_digest": "d", "plan_digest": "p"}
    report = RuntimeReport.model_validate(
        {**values, "state": "ready", "context_tokens": 1, "parallel": 1, "threads": 1}
    )
    assert report.node.cgroups == "none"
