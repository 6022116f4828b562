"""limit: the planned memory limit against the peak of a real replica under that very limit.

Owns: placing the 150M and 1B models with every profile on a node without devices, running each
replica in a control group of the plan's limit, and filling its KV cells and its host tier. Used is
the peak of anonymous and shared memory of all its processes, and the files that it reads with every
token: weights that are not copied, and libraries (48 MiB, as the plan counts them). DeviceOnly has
no plan without a device, which is checked too. Needs root.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bench.models import model_file
from bench.planner_cases.estimate_cpu import facts_of
from bench.verdict import Metric, absolute, lost
from build.workshop import say
from support.memory_limit import limited_memory, unavailable
from support.planning import GIB, MIB, model, node, place, pool
from support.replicas import Replica, pod_folder, serving
from support.waiting import wait_for
from terrace.controller.replica_offload import replica_offload
from terrace.planner.footprint import LIBRARY_PAGES_BYTES
from terrace.planner.placement import Placement
from terrace_runtime.contract import KvTiers, RuntimeConfig, RuntimeReport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.verdict import Line
    from terrace.planner.plan import OffloadPlan

METRIC = Metric("limit", "% unused", 15.0, less_is_better=True)
PROFILES = ("Auto", "Balanced", "HostHeavy", "DiskHeavy")
SIZES = {"mid-q8_0": (1024, 4), "mid-q4_0": (1024, 4), "big-q8_0": (512, 2), "big-q4_0": (512, 2)}
"""Context and sequences by model. Short ones are the harder test: what is the same for every
replica is then most of the limit."""
ANSWER_TOKENS = 8
ANSWER_TIMEOUT_S = 1800.0
LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Filled:
    """What a replica took."""

    peak_bytes: int
    """Anonymous and shared."""
    times_full: int
    """How often the kernel took pages back at the limit."""
    seconds: float
    """From the first prompt to the last answer."""


def run() -> Line:
    """The largest share of a limit that nobody used, with a row per replica."""
    if why := unavailable():
        return lost(METRIC, why)
    return summary([_row(name, profile) for name in SIZES for profile in PROFILES])


def summary(rows: Sequence[Line]) -> Line:
    """The line of replicas that all lived."""
    worst = max(rows, key=lambda row: row["unused %"])
    line = absolute(METRIC, [{METRIC.id: worst["unused %"]}])
    over = [f"{row['model']} {row['profile']}" for row in rows if not row["request holds"]]
    also = f"{len(rows)} replicas, none killed; most unused {worst['model']} {worst['profile']}"
    also += f"; above the request: {', '.join(over)}" * bool(over)
    is_met = line["ok"] and not over and _device_only_is_refused()
    return {**line, "rounds": len(rows), "ok": is_met, "also": also, "rows": rows}


def _row(name: str, profile: str) -> Line:
    say(f"limit {name} {profile}")
    plan = plan_of(name, profile, *SIZES[name])
    filled = fill(name, plan, 2 * plan.parallel)
    floor = page_cache_bytes(plan)
    used = filled.peak_bytes + floor
    return {
        "model": name,
        "profile": profile,
        "weights": plan.weights,
        "anonymous planned MiB": round(anonymous_bytes(plan) / MIB),
        "anonymous peak MiB": round(filled.peak_bytes / MIB),
        "page cache MiB": round(floor / MIB),
        "limit MiB": round(plan.memory_limit_bytes / MIB),
        "unused %": round(100 * (1 - used / plan.memory_limit_bytes), 1),
        "request holds": filled.peak_bytes <= anonymous_bytes(plan),
        "pages taken back": filled.times_full,
    }


def page_cache_bytes(plan: OffloadPlan) -> int:
    """Weights that are used where they are mapped, paged ones as well, and libraries."""
    return plan.weights_bytes - plan.repacked_bytes + LIBRARY_PAGES_BYTES


def plan_of(name: str, profile: str, context: int, parallel: int) -> OffloadPlan:
    """The plan of a benchmark model on a node of 8 GiB, ``context`` tokens for each sequence."""
    wanted = model(context={"length": context, "parallel": parallel}, offload={"profile": profile})
    found = place(facts_of(model_file(name)), wanted, pool(), [node(memory_bytes=8 * GIB)], {})
    assert isinstance(found, Placement), found
    return found.plan


def anonymous_bytes(plan: OffloadPlan) -> int:
    """What the plan counts as anonymous and shared."""
    if plan.weights != "paged":
        return plan.memory_request_bytes - page_cache_bytes(plan)
    # Its request has less page cache than weights, for they may come and go.
    return plan.kv_bytes + plan.compute_bytes + plan.base_bytes + plan.tiers_bytes


def fill(name: str, plan: OffloadPlan, prompts: int) -> Filled:
    """Run a replica of ``plan`` under its limit, with ``prompts`` that fill a sequence each.

    Twice as many as there are sequences move what went before to the host tier, whose memory is
    taken when the replica starts. Raises RuntimeError when it is killed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="terrace-limit-") as folder,
        limited_memory(plan.memory_limit_bytes) as limit,
    ):
        pod = pod_folder(Path(folder) / "pod")
        (pod / "models/model.gguf").symlink_to(model_file(name))
        config = config_of(plan)
        with serving(pod, config, wrapper=limit.wrapper) as replica:
            try:
                peak, seconds = _peak(replica, config, prompts)
                return Filled(peak, limit.times_full, seconds)
            except (AssertionError, OSError) as error:
                raise RuntimeError(
                    f"{name} ended under its limit: {replica.log()[-600:]}"
                ) from error


def config_of(plan: OffloadPlan) -> RuntimeConfig:
    """What the operator tells a replica of ``plan``."""
    return RuntimeConfig(
        model="model",
        served_names=("model",),
        model_path="/models/model.gguf",
        model_digest="d" * 64,
        context_tokens=plan.context_tokens,
        parallel=plan.parallel,
        batch_tokens=plan.batch_tokens,
        ubatch_tokens=plan.ubatch_tokens,
        prefill_tokens=plan.prefill_tokens,
        threads=2,
        kv_key_type=plan.kv_key_type,
        kv_value_type=plan.kv_value_type,
        kv_unified=plan.kv_unified,
        kv=KvTiers(
            block_tokens=plan.block_tokens,
            host_bytes=plan.host_bytes,
            disk_bytes=min(plan.disk_bytes, 2 * GIB),
            disk_path="/kv" if plan.disk_bytes else "",
            prefetch_bytes=plan.prefetch_bytes,
            isolation="shared",
        ),
        offload=replica_offload(plan),
    )


def _peak(replica: Replica, config: RuntimeConfig, prompts: int) -> tuple[int, float]:
    wait_for("a ready replica", replica.is_ready, 120)
    began = time.monotonic()
    peaks: list[int] = []
    is_over = threading.Event()
    looker = threading.Thread(target=_look, args=(replica.process.pid, peaks, is_over))
    looker.start()
    try:
        with ThreadPoolExecutor(config.parallel) as clients:
            list(clients.map(lambda number: _ask(replica, config, number), range(prompts)))
        seconds = time.monotonic() - began
        report = RuntimeReport.model_validate_json(replica.get("/v1/runtime"))
    finally:
        is_over.set()
        looker.join()
    return max([*peaks, report.memory.anonymous_peak_bytes or 0]), seconds


def _look(pid: int, peaks: list[int], is_over: threading.Event) -> None:
    while not is_over.wait(LOOK_EVERY_S):
        peaks.append(sum(_anonymous(pid)))


def _anonymous(pid: int) -> Iterator[int]:
    """RssAnon + RssShmem of a process and all its children."""
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in lines:
            if line.startswith(("RssAnon:", "RssShmem:")):
                yield int(line.split()[1]) << 10


def _ask(replica: Replica, config: RuntimeConfig, number: int) -> None:
    length = config.context_tokens - ANSWER_TOKENS
    prompt = [300 + (number * 131 + 7 * index) % 7000 for index in range(length)]
    body = {"model": "model", "prompt": prompt, "max_tokens": ANSWER_TOKENS}
    request = urllib.request.Request(
        f"http://127.0.0.1:{replica.port}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as reply:
        answer: dict[str, Any] = json.load(reply)
    assert answer["usage"]["prompt_tokens"] >= length, answer


def _device_only_is_refused() -> bool:
    found = place(
        facts_of(model_file("mid-q8_0")),
        model(offload={"profile": "DeviceOnly"}),
        pool(),
        [node(memory_bytes=8 * GIB)],
        {},
    )
    return not isinstance(found, Placement) and found.reason == "NoDevice"
