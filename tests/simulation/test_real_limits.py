"""A replica in a control group of its own: the limit is seen, judged and told. Needs root."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.engine_builders import DEMO, runtime_config
from support.memory_limit import limited_memory, unavailable
from support.replicas import last_words, pod_folder, serving
from support.tiny_models import MODELS
from support.waiting import wait_for
from terrace_runtime.contract import EXIT_HOST_MEMORY, KvTiers, RuntimeReport

if TYPE_CHECKING:
    from pathlib import Path

    from support.replicas import Replica
    from terrace_runtime.contract import RuntimeConfig

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable()), reason=unavailable())]
MIB = 1 << 20
LONG_S = 90


def states_of_mamba(pod: Path, **changes: object) -> RuntimeConfig:
    """A model whose host tier takes memory state by state, not all of it ahead of use."""
    MODELS["mamba"](pod / "models" / "mamba.gguf")
    return runtime_config(model_path="/models/mamba.gguf", **changes)


def demo(pod: Path, **changes: object) -> RuntimeConfig:
    (pod / "models" / "chat.gguf").write_bytes((DEMO / "chat.gguf").read_bytes())
    return runtime_config(model_path="/models/chat.gguf", **changes)


def test_a_limit_is_in_the_report_and_a_plan_that_outgrows_it_is_a_warning(tmp_path: Path) -> None:
    pod = pod_folder(tmp_path)
    # With the two processes this is more than the limit, but alone it is not.
    config = states_of_mamba(pod, kv=KvTiers(host_bytes=480 * MIB))
    limit_bytes = 512 * MIB
    with (
        limited_memory(limit_bytes) as limit,
        serving(pod, config, wrapper=limit.wrapper) as replica,
    ):
        wait_for("readiness", replica.is_ready, LONG_S, every=0.05)
        report = RuntimeReport.model_validate_json(replica.get("/v1/runtime")).node
        metrics = replica.get("/metrics").decode()
        replica.process.kill()
        replica.process.wait()
    assert report.memory.limit_bytes == limit_bytes
    assert report.cgroups == ("v2" if limit.is_v2 else "v1")
    assert report.memory.used_bytes is not None
    assert 20 * MIB < report.memory.used_bytes < limit_bytes
    assert report.memory.oom_kills == 0
    said = f"its memory limit is 512.0 MiB ({limit_bytes} bytes)"
    (warning,) = [each for each in report.warnings if said in each]
    assert warning in replica.log().replace('\\"', '"')
    (told,) = [line for line in metrics.splitlines() if 'memory_bytes{kind="limit"}' in line]
    assert float(told.split()[1]) == limit_bytes


def test_a_tier_that_fills_its_part_of_the_limit_is_no_warning(tmp_path: Path) -> None:
    pod = pod_folder(tmp_path)
    config = demo(pod, kv=KvTiers(host_bytes=480 * MIB))
    with (
        limited_memory(720 * MIB) as limit,
        serving(pod, config, wrapper=limit.wrapper) as replica,
    ):
        wait_for("readiness", replica.is_ready, LONG_S, every=0.05)
        # The tier's memory is touched ahead of use.
        wait_for("a full tier", lambda: memory_of(replica) > 480 * MIB, LONG_S)
        report = RuntimeReport.model_validate_json(replica.get("/v1/runtime")).node
        replica.process.kill()
        replica.process.wait()
    assert report.memory.oom_kills == 0
    assert not [each for each in report.warnings if "memory limit" in each]


def memory_of(replica: Replica) -> int:
    report = RuntimeReport.model_validate_json(replica.get("/v1/runtime"))
    return report.node.memory.used_bytes or 0


def test_a_plan_larger_than_the_limit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    pod = pod_folder(tmp_path)
    config = demo(pod, kv=KvTiers(host_bytes=300 * MIB))
    # It ends before it listens, which is what ``serving`` waits for.
    with (
        limited_memory(256 * MIB) as limit,
        pytest.raises(AssertionError, match=r"kv\.host_bytes"),
        serving(pod, config, wrapper=limit.wrapper),
    ):
        pass
    assert f"({300 * MIB} bytes)" in last_words(pod)
    assert f"({256 * MIB} bytes)" in last_words(pod)


def test_an_engine_that_the_kernel_kills_while_it_loads_says_limit_and_peak(
    tmp_path: Path,
) -> None:
    pod = pod_folder(tmp_path)
    config = demo(pod, context_tokens=4096, parallel=128)  # 640 MiB of cells
    limit_bytes = 320 * MIB
    with (
        limited_memory(limit_bytes) as limit,
        serving(pod, config, wrapper=limit.wrapper) as replica,
    ):
        assert replica.process.wait(LONG_S) == EXIT_HOST_MEMORY
    words = last_words(pod)
    assert "SIGKILL" in words
    assert f"the container's memory limit: 320.0 MiB ({limit_bytes} bytes)" in words
    assert "the most it held: " in words
