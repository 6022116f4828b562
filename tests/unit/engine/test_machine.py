"""What the backend asks of the machine: threads, llama.cpp's log, and whether the build fits."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from support.node_trees import pod_on_v2
from terrace_runtime.backend import BackendError
from terrace_runtime.backend.cpu import usable_threads
from terrace_runtime.backend.loadlog import LoadLog
from terrace_runtime.backend.selfcheck import check_build

if TYPE_CHECKING:
    from pathlib import Path

ALL = len(os.sched_getaffinity(0))


def test_threads_are_bounded_by_quota_and_mask_whatever_the_plan_wants(tmp_path: Path) -> None:
    root = pod_on_v2(tmp_path, box={"cpuset.cpus.effective": "0-1023"})
    assert usable_threads(0, root) == 1
    assert usable_threads(ALL + 5, root) == 1
    assert usable_threads(0, tmp_path / "nothing") == ALL
    assert usable_threads(ALL + 5, tmp_path / "nothing") == ALL
    assert usable_threads(1, tmp_path / "nothing") == 1


def test_buffer_sizes_are_summed_over_devices_and_kinds() -> None:
    log = LoadLog()
    lines = [
        "load_tensors:   CPU_Mapped model buffer size =     2.00 MiB",
        "load_tensors:        CUDA0 model buffer size =     6.00 MiB",
        "llama_kv_cache:        CPU KV buffer size =     1.50 MiB",
        "sched_reserve:        CPU compute buffer size =     3.00 MiB",
        "llama_context:        CPU  output buffer size =     1.00 MiB",
    ]
    for line in lines:
        log.add(2, line + "\n")
    mib = 1024 * 1024
    assert (log.weights_bytes, log.kv_bytes, log.compute_bytes) == (8 * mib, 1.5 * mib, 4 * mib)
    assert LoadLog().kv_bytes is None


def test_the_last_errors_are_kept_as_the_reason() -> None:
    log = LoadLog()
    for line in ("old", "a", "b", "c"):
        log.add(4, line)
    log.add(5, " and more")
    log.add(2, "fine")
    assert log.complaint == "b; c; and more"


def test_this_build_of_llama_cpp_passes_its_check() -> None:
    check_build()


@pytest.mark.parametrize(
    ("program", "timeout_s", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", 60, r"SIGILL.*CPU.*Rebuild"),
        ("import sys; sys.exit('wrong version')", 60, r"exit code 1 \(wrong version\)"),
        ("import threading; threading.Event().wait()", 1, r"did not decode"),
    ],
)
def test_a_build_that_fails_its_check_is_an_error_with_the_way_out(
    program: str, timeout_s: float, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        check_build([sys.executable, "-c", program], timeout_s)
